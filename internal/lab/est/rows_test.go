package est

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"birthmark/internal/promises"
)

// TestEST keeps the rows of docs/est.md that are about a server.
func TestEST(t *testing.T) {
	promises.Keep(t, "est.md", map[int]func(*testing.T){
		1: TestRequestsThatAreNone,
		2: takes(nil, inLines("\n"), inLines("\r\n"), inOne),
		3: takes(func(r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				panic(err)
			}
			r.ContentLength, r.Body = -1, io.NopCloser(strings.NewReader(string(body)))
		}, inOne),
		4: takes(func(r *http.Request) { r.Header.Set("Content-Transfer-Encoding", "binary") }, inOne),
		5: takes(func(r *http.Request) { r.Header.Set("Accept", "text/html") }, inOne),
		6: func(t *testing.T) {
			w := newWorld(t, t.TempDir(), func(c *Config) { c.CSRAttrs = []byte{0x30, 0} })
			for _, op := range []string{"cacerts", "csrattrs"} {
				a := newDevice(t, "").do(t, w.ownerEST, request(t, http.MethodGet, w.ownerEST.URL()+root+op, nil))
				if a.status != http.StatusOK {
					t.Errorf("%s: %d %q, want 200 for anybody", op, a.status, a.body)
				}
			}
		},
		7: TestPathsAndMethods,
		8: TestCACertsHasTheIssuingCAAndTheRoot,
		9: func(t *testing.T) {
			w := newWorld(t, t.TempDir(), nil)
			conf := newDevice(t, "").tls(w.owner.Root())
			conf.NextProtos = []string{"h2", "http/1.1"}
			conn, err := tls.Dial("tcp", w.ownerEST.Addr().String(), conf)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got := conn.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
				t.Errorf("spoke %q, want http/1.1", got)
			}
		},
		10: func(t *testing.T) {
			w := newWorld(t, t.TempDir(), nil)
			checkRefusal(t, "no password", newDevice(t, "dev-1").post(t, w.ownerEST, "simpleenroll"), 401, "neither")
		},
		11: TestAnEndedCertificateIsToldSo,
		13: TestADeviceBringsItsChain,
		14: TestRefusals,
		17: TestChannelBinding,
		18: TestChannelBinding,
		19: func(t *testing.T) {
			w := newWorld(t, t.TempDir(), nil)
			dev := newDevice(t, "dev-1")
			dev.pass = w.password(t, w.owner, "dev-1")
			for _, length := range []int{16, 44} { // as long as that of either version of TLS
				replayed := base64.StdEncoding.EncodeToString(withChallenge(t, dev, strings.Repeat("A", length)))
				checkRefusal(t, "a replayed request", dev.postBody(t, w.ownerEST, "simpleenroll", replayed), 403, "not the channel binding")
			}
		},
		20: TestTheServerWantsABindingIfItsAnswerSaysSo,
		24: TestBothVersionsOfTLS,
		28: takes(nil, func(text string) string { return " \t" + inLines("\r\n\t ")(text) }, func(text string) string { return text + "\x00" }),
		33: TestHeldRequestsAreAnsweredLater,
		34: func(t *testing.T) {
			held := false
			w := newWorld(t, t.TempDir(), func(c *Config) {
				c.Hold = func(*x509.CertificateRequest) time.Duration {
					if held = !held; held {
						return time.Second
					}
					return 0
				}
			})
			dev := newDevice(t, "dev-1")
			dev.pass = w.password(t, w.owner, "dev-1")
			body := base64.StdEncoding.EncodeToString(dev.csr(t))
			for _, want := range []int{202, 200} {
				if a := dev.postBody(t, w.ownerEST, "simpleenroll", body); a.status != want {
					t.Errorf("%d %q, want %d", a.status, a.body, want)
				}
			}
		},
		35: TestCSRAttrsSaysWhatItIsTold,
		38: TestATemplateIsWrittenAsTheStandardSays,
		39: func(t *testing.T) {
			w := newWorld(t, t.TempDir(), nil)
			dev := newDevice(t, "dev-1")
			dev.pass = w.password(t, w.owner, "dev-1")
			dev.tmpl = named("dev\r\n\x1b[2J-2")
			checkRefusal(t, "a name that writes to the terminal", dev.post(t, w.ownerEST, "simpleenroll"), 400, "device id")
		},
		45: TestBothVersionsOfTLS,
		46: func(t *testing.T) {
			w := newWorld(t, t.TempDir(), nil)
			dev := newDevice(t, "dev-1")
			dev.pass = w.password(t, w.owner, "dev-1")
			dev.mustEnrol(t, w.ownerEST, "simpleenroll") // looks at the answer
			certificates(t, dev.do(t, w.ownerEST, request(t, http.MethodGet, w.ownerEST.URL()+root+"cacerts", nil)))
		},
		47: TestTooMuchIsRefusedUnread,
		48: func(t *testing.T) {
			w := newWorld(t, t.TempDir(), nil)
			dev := newDevice(t, "dev-1")
			dev.pass = w.password(t, w.owner, "dev-1")
			dev.tmpl = named("dev-1")
			dev.tmpl.ExtraExtensions = []pkix.Extension{
				{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}},
				{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{0x03, 0x02, 0x02, 0x04}},
			}
			cert := dev.mustEnrol(t, w.ownerEST, "simpleenroll")
			if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature {
				t.Errorf("asked for a CA's certificate, the device got CA %v, key usage %b, want a device's", cert.IsCA, cert.KeyUsage)
			}
		},
	})
}

// takes lets a device enrol with its request written in other ways, each.
func takes(change func(*http.Request), written ...func(string) string) func(*testing.T) {
	return func(t *testing.T) {
		w := newWorld(t, t.TempDir(), nil)
		dev := newDevice(t, "dev-1")
		dev.pass = w.password(t, w.owner, "dev-1")
		for _, write := range written {
			req := request(t, http.MethodPost, w.ownerEST.URL()+root+"simpleenroll", strings.NewReader(write(base64.StdEncoding.EncodeToString(dev.csr(t)))))
			req.Header.Set("Content-Type", "application/pkcs10")
			if change != nil {
				change(req)
			}
			certificates(t, dev.do(t, w.ownerEST, req))
		}
	}
}

func inOne(text string) string { return text }

// inLines writes base64 in lines of 64.
func inLines(end string) func(string) string {
	return func(text string) string {
		var b strings.Builder
		for len(text) > 0 {
			n := min(64, len(text))
			b.WriteString(text[:n] + end)
			text = text[n:]
		}
		return b.String()
	}
}
