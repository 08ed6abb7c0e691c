package main

import (
	"crypto/tls"
	"encoding/asn1"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"birthmark/internal/cli/clitest"
	"birthmark/internal/lab"
	"birthmark/internal/lab/ca"
	"birthmark/internal/lab/est"
	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"birthmark": main})
}

// TestScript runs the binary as people do, with TPMs of its own for every script
// and one lab for all.
//
// In a script, $TPM and $OTHER_TPM are addresses; $EST, $MAKER_EST, $ROOT and
// $MAKER_ROOT belong to the lab; $CONFIG is a device's configuration. $LATER is the
// owner's EST server too, but answers "202, later" until the script says `approve`, or
// with what it `answers STATUS`;
// $PROOF is another one, which wants requests to be bound to their connection.
// Commands are `exits CODE program …`; `password CA ID FILE`; `heard TOPIC`, which waits
// for a device to say something; `asked`, which waits for one to ask at $LATER;
// `prometheus FILE SERIES …`; and `secrets STATE PASSWORD FILE`. [root] is a condition.
func TestScript(t *testing.T) {
	var ear ear
	l, err := lab.Up(t.Context(), lab.Options{Dir: t.TempDir(), Heard: ear.hear})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	proof := startProof(t, l)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			for name, start := range map[string]func(testing.TB) *swtpm.TPM{"TPM": swtpmtest.Start, "OTHER_TPM": swtpmtest.StartOther} {
				env.Setenv(name, start(t).Address())
			}
			later := startLater(t, l)
			env.Values[laterKey] = later
			env.Setenv("LATER", later.URL)
			env.Setenv("PROOF", proof.URL())
			env.Setenv("EST", l.OwnerURL())
			env.Setenv("MAKER_EST", l.MakerURL())
			env.Setenv("ROOT", filepath.Join(l.Dir(), "device", "owner-root.pem"))
			env.Setenv("MAKER_ROOT", filepath.Join(l.Dir(), "device", "maker-root.pem"))
			env.Setenv("CONFIG", filepath.Join(l.Dir(), "device", "birthmark.toml"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": clitest.Exits,
			"password": func(ts *testscript.TestScript, _ bool, args []string) {
				password, err := l.NewPassword(args[0], args[1])
				ts.Check(err)
				ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(password+"\n"), 0o600))
			},
			"approve": func(ts *testscript.TestScript, _ bool, _ []string) {
				ts.Value(laterKey).(*later).status.Store(0)
			},
			"answers": func(ts *testscript.TestScript, _ bool, args []string) {
				status, err := strconv.Atoi(args[0])
				ts.Check(err)
				ts.Value(laterKey).(*later).status.Store(int64(status))
			},
			"heard":      ear.await,
			"asked":      asked,
			"prometheus": prometheus,
			"secrets":    secrets,
		},
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, fmt.Errorf("no condition %q", cond)
			}
			return os.Geteuid() == 0, nil
		},
	})
}

// startProof stands before the owner's CA, and wants proof of possession (RFC 7030,
// 3.5).
func startProof(t *testing.T, l *lab.Lab) *est.Server {
	t.Helper()
	wish, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 2, 840, 113549, 1, 9, 7}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := est.Start("127.0.0.1:0", est.Config{CA: l.OwnerCA(), Profile: ca.Device(0), CSRAttrs: wish, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// laterKey finds the script's later.
const laterKey = "later"

// A later is an EST server that has nobody who decides.
type later struct {
	*httptest.Server
	status atomic.Int64  // of its answers; 0: the owner's
	asked  chan struct{} // closed at the first request
}

func startLater(t *testing.T, l *lab.Lab) *later {
	t.Helper()
	cert, err := l.OwnerCA().Server("later")
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(l.OwnerURL())
	if err != nil {
		t.Fatal(err)
	}
	owner := httputil.NewSingleHostReverseProxy(target)
	owner.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	s := &later{asked: make(chan struct{})}
	s.status.Store(http.StatusAccepted)
	note := sync.OnceFunc(func() { close(s.asked) })
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status := int(s.status.Load()); r.Method == http.MethodPost && status != 0 {
			note()
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(status)
			return
		}
		owner.ServeHTTP(w, r)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}
