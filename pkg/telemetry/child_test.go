package telemetry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The tests start their own binary for what needs a process of its own: childVar
// says what it is to do.
const childVar = "BIRTHMARK_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childVar) {
	case "proxy":
		childProxy()
	case "link":
		childLink()
	default:
		os.Exit(m.Run())
	}
}

// child is a command that does what, with these settings in its environment and no
// others that are about proxies.
func child(what string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	for _, setting := range os.Environ() {
		if name, _, _ := strings.Cut(strings.ToUpper(setting), "="); !strings.HasSuffix(name, "_PROXY") {
			cmd.Env = append(cmd.Env, setting)
		}
	}
	cmd.Env = append(append(cmd.Env, childVar+"="+what), env...)
	return cmd
}

// childProxy reads addresses and says which proxies lead there.
func childProxy() {
	var addr string
	for {
		if _, err := fmt.Scanln(&addr); err != nil {
			return
		}
		proxy, err := proxyFor(addr)
		fmt.Println(proxy, err)
	}
}

// childLink runs a Link of dev-1 to the broker that the environment names until its
// input ends. Each session is a line of output; the log goes to stderr.
func childLink() {
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	der, err := os.ReadFile(os.Getenv("ROOT"))
	must(err)
	root, err := x509.ParseCertificate(der)
	must(err)
	roots := x509.NewCertPool()
	roots.AddCert(root)
	outbox, err := OpenOutbox(os.Getenv("OUTBOX"), Limits{})
	must(err)
	l := &Link{
		Brokers: []string{os.Getenv("BROKER")}, ID: "dev-1", Outbox: outbox, Window: time.Nanosecond, without: rule(os.Getenv("WITHOUT")),
		TLS:         func(server string) (*tls.Config, error) { return &tls.Config{RootCAs: roots, ServerName: server}, nil },
		OnConnected: func() { fmt.Println("up") },
		Log:         slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with the parent, too
		stop()
	}()
	must(l.Run(ctx))
	must(outbox.Close())
}
