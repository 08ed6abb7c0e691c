package enroll

import (
	"fmt"
	"testing"

	"birthmark/internal/twins"
)

// sites are those of all checks. The files themselves know nothing of it.
var sites = []twins.Site{
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

func TestEveryAttackHasATwin(t *testing.T) {
	if without != nil {
		return // this is the build with the switches
	}
	var all []twins.Attack
	for _, x := range attacks() {
		all = append(all, twins.Attack{Name: x.name, Checks: x.checks})
	}
	twins.Run(t, "enroll", sites, all, switches, "TestAttacks", fmt.Sprintf("%d attacks, each with its twin", len(all)))
}
