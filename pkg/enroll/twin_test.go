package enroll

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A site is where a check stands: a text in a file of this package, and what stands
// there instead in a build for tests, so that it can be switched off. Where that is
// empty, the text is the condition for a refusal.
type site struct{ check, file, text, instead string }

// sites are those of all checks. The files themselves know nothing of it.
var sites = []site{
	{"server", "peer.go", `c.newPeer(c.conf.Clock.TLS(anchors, c.origin.Hostname()), anchors)`,
		`c.newPeer(unless("server", c.conf.Clock.TLS(anchors, c.origin.Hostname())), anchors)`},
	{"version", "peer.go", `	var protocols http.Protocols`,
		"	if off(\"version\") {\n		conf.MinVersion = tls.VersionTLS10\n	}\n	var protocols http.Protocols"},
	{"pin", "peer.go", `return bytes.Equal(sum[:], c.conf.Pin)`, `return off("pin") || bytes.Equal(sum[:], c.conf.Pin)`},
	{"pinned chain", "peer.go", `VerifyConnection(*a.tls); err != nil {`, `VerifyConnection(*a.tls); err != nil && !off("pinned chain") {`},
	{"early certificate", "peer.go", `	if p.anchors == nil {
		return nil
	}
	return c.conf.Certificate`, `	if p.anchors == nil && !off("early certificate") {
		return nil
	}
	return c.conf.Certificate`},
	{"early password", "exchange.go", `p.anchors != nil && c.conf.Password != ""`, `(p.anchors != nil || off("early password")) && c.conf.Password != ""`},
	{"early redirect", "exchange.go", `p.anchors == nil || hops`, `p.anchors == nil && !off("early redirect") || hops`},

	{"key", "accept.go", `samePublicKey(cert.PublicKey, w.Key.Public()) && (leaf`, `(off("key") || samePublicKey(cert.PublicKey, w.Key.Public())) && (leaf`},
	{"try", "accept.go", `leaf.CheckSignature(algorithm, message, signature); err != nil`, `leaf.CheckSignature(algorithm, message, signature); err != nil && !off("try")`},
	{"no CA", "accept.go", `leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0`, ""},
	{"signature", "accept.go", `leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0`, ""},
	{"client", "accept.go", `!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth)`, ""},
	{"successor", "accept.go", `w.Current != nil && leaf.NotAfter.Before(w.Current.NotAfter)`, ""},
	{"begin", "accept.go", `leaf.NotBefore.Sub(now) > skew`, ""},
	{"chain", "accept.go", `	chain, err := verify(certs)`, `	if off("chain") {
		return []*x509.Certificate{leaf}, nil
	}
	chain, err := verify(certs)`},

	{"subject", "changes.go", `!slices.ContainsFunc(got, func(g pkix.AttributeTypeAndValue) bool { return sameAttribute(a, g) })`, ""},
	{"common name", "changes.go", `named && isCommonName(g)`, ""},
	{"alternative name", "changes.go", `!slices.ContainsFunc(have, func(h asn1.RawValue) bool { return bytes.Equal(h.FullBytes, n.FullBytes) })`, ""},
	{"additions", "changes.go", `len(changes) > changeLimit`, ""},

	{"media type", "answer.go", `err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) || got != mediaType`, ""},
	{"end of PEM", "answer.go", `len(bytes.TrimSpace(rest)) != 0`, ""},
	{"whole", "exchange.go", `if err = cmp.Or(err, context.Cause(resp.Request.Context())); err != nil {`,
		`if err = cmp.Or(err, context.Cause(resp.Request.Context())); err != nil && !off("whole") {`},
	{"size", "exchange.go", `io.LimitReader(resp.Body, answerLimit+1)`, `io.LimitReader(resp.Body, answerLimit<<steps("size")+1)`},
	{"size", "exchange.go", `len(a.body) > answerLimit`, ""},
	{"compression", "peer.go", `DisableCompression:     true,`, `DisableCompression:     !off("compression"),`},
	{"header", "peer.go", `MaxResponseHeaderBytes: headerLimit,`, `MaxResponseHeaderBytes: headerLimit << steps("header"),`},
	{"time", "enroll.go", `context.WithTimeoutCause(ctx, c.conf.Timeout,`, `context.WithTimeoutCause(ctx, c.conf.Timeout << steps("time"),`},
	{"wishes", "enroll.go", `outer.Class != asn1.ClassUniversal || outer.Tag != asn1.TagSequence || !outer.IsCompound`, ""},

	{"origin", "exchange.go", `next.User != nil || next.Scheme != u.Scheme || !strings.EqualFold(next.Hostname(), u.Hostname()) || portOf(next) != portOf(u)`, ""},
	{"hops", "exchange.go", `hops == redirectLimit`, ""},
	{"body", "exchange.go", `resp.Request.Method != http.MethodGet && resp.StatusCode < http.StatusTemporaryRedirect`, ""},

	{"printable", "errors.go", `!unicode.IsPrint(r) || r == unicode.ReplacementChar`, ""},
	{"short", "errors.go", `	if len(line) <= limit {`, `	if len(line) <= limit || off("short") {`},
	{"longest wait", "exchange.go", `int64(waitMost/time.Second))) * time.Second`, `int64(waitMost/time.Second) << steps("longest wait"))) * time.Second`},
	{"shortest wait", "exchange.go", `max(n, int64(waitLeast/time.Second))`, `max(n, int64(waitLeast/time.Second) >> steps("shortest wait"))`},
}

// switches is what the build has besides.
const switches = `package enroll

import "crypto/tls"

var switchedOff = map[string]bool{}

func off(check string) bool { return switchedOff[check] }

func unless(check string, conf *tls.Config) *tls.Config {
	if off(check) {
		return &tls.Config{InsecureSkipVerify: true}
	}
	return conf
}

// steps is by how many bits a limit moves.
func steps(check string) int {
	if off(check) {
		return 10
	}
	return 0
}
`

const switchesForTests = `package enroll

func init() {
	without = func(checks ...string) func() {
		for _, name := range checks {
			switchedOff[name] = true
		}
		return func() { clear(switchedOff) }
	}
}
`

// That an attack fails proves nothing about a check: it may fail for another reason.
// So every attack has a twin, which is the same but that the checks said to stop it
// are switched off, and which succeeds. The switches are in a build of their own.
func TestEveryAttackHasATwin(t *testing.T) {
	if without != nil {
		return // this is that build
	}
	here, err := os.Getwd()
	must(err)
	replaced := map[string]string{}
	for _, s := range sites {
		text, ok := replaced[s.file]
		if !ok {
			b, err := os.ReadFile(s.file)
			must(err)
			text = string(b)
		}
		if n := strings.Count(text, s.text); n != 1 {
			t.Errorf("check %q: its text stands %d times in %s, want once: %s", s.check, n, s.file, s.text)
			continue
		}
		instead := s.instead
		if instead == "" {
			instead = fmt.Sprintf("!off(%q) && (%s)", s.check, s.text)
		}
		replaced[s.file] = strings.Replace(text, s.text, instead, 1)
	}
	for _, a := range attacks() {
		for _, name := range a.checks {
			if !slices.ContainsFunc(sites, func(s site) bool { return s.check == name }) {
				t.Errorf("%s: nobody can switch %q off", a.name, name)
			}
		}
	}
	for _, s := range sites {
		if !slices.ContainsFunc(attacks(), func(a attack) bool { return slices.Contains(a.checks, s.check) }) {
			t.Errorf("check %q stops no attack", s.check)
		}
	}
	replaced["switches.go"], replaced["switches_test.go"] = switches, switchesForTests

	dir := t.TempDir()
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for name, text := range replaced {
		overlay.Replace[filepath.Join(here, name)] = filepath.Join(dir, name)
		must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	text, err := json.Marshal(overlay)
	must(err)
	must(os.WriteFile(filepath.Join(dir, "overlay.json"), text, 0o600))
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-vet=off", "-v", "-overlay", filepath.Join(dir, "overlay.json"), "-run", "^TestAttacks$", ".")
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprintf("%d attacks, each with its twin", len(attacks())); err != nil || !strings.Contains(string(out), want) {
		failed := slices.DeleteFunc(strings.Split(string(out), "\n"), func(line string) bool {
			return strings.HasPrefix(line, "=== ") || strings.Contains(line, "--- PASS")
		})
		t.Errorf("%v, want %q:\n%s", err, want, strings.Join(failed, "\n"))
	}
}
