package enroll

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"birthmark/pkg/clock"
)

// Each row is a certificate that a trusted server may issue for a request with
// common name, organization and two alternative names.
func TestCertificates(t *testing.T) {
	asked := pkix.Name{CommonName: "sensor-1", Organization: []string{"Acme"}}
	alt := func(tmpl *x509.CertificateRequest) {
		tmpl.Subject, tmpl.DNSNames, tmpl.IPAddresses = asked, []string{"sensor-1.example"}, []net.IP{net.IPv4(192, 0, 2, 1)}
	}
	named := func(edit func(*pkix.Name)) func(*x509.Certificate) {
		return func(tmpl *x509.Certificate) {
			name := asked
			edit(&name)
			tmpl.RawSubject, tmpl.Subject = nil, name
		}
	}
	cn := func(value string) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: oidCommonName, Value: value}
	}
	at := func(from, to time.Time) func(*x509.Certificate) {
		return func(tmpl *x509.Certificate) { tmpl.NotBefore, tmpl.NotAfter = from, to }
	}
	for _, tc := range []struct {
		name    string
		edit    func(*x509.Certificate)
		changes []string
		refused string // why; empty if accepted
	}{
		{"as asked", func(*x509.Certificate) {}, nil, ""},

		// What it is for.
		{"a CA's", func(tmpl *x509.Certificate) { tmpl.IsCA = true }, nil, "is a CA's"},
		{"a CA's by its keyUsage", func(tmpl *x509.Certificate) { tmpl.KeyUsage |= x509.KeyUsageCertSign }, nil, "is a CA's"},
		{"to sign CRLs", func(tmpl *x509.Certificate) { tmpl.KeyUsage |= x509.KeyUsageCRLSign }, nil, "is a CA's"},
		{"without basicConstraints", func(tmpl *x509.Certificate) { tmpl.BasicConstraintsValid = false }, nil, ""},
		{"without keyUsage", func(tmpl *x509.Certificate) { tmpl.KeyUsage = 0 }, nil, "lacks digitalSignature"},
		{"to encrypt keys only", func(tmpl *x509.Certificate) { tmpl.KeyUsage = x509.KeyUsageKeyEncipherment }, nil, "lacks digitalSignature"},
		{"without extendedKeyUsage", func(tmpl *x509.Certificate) { tmpl.ExtKeyUsage = nil }, nil, "lacks clientAuth"},
		{"for servers only", func(tmpl *x509.Certificate) { tmpl.ExtKeyUsage = server.ExtKeyUsage }, nil, "lacks clientAuth"},
		{"for any use", func(tmpl *x509.Certificate) { tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, nil, "lacks clientAuth"},
		{"for servers, too", func(tmpl *x509.Certificate) { tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }, nil, ""},
		{"with a critical extension that nobody knows", func(tmpl *x509.Certificate) {
			tmpl.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}, nil, "unhandled critical extension"},

		// When.
		{"from a minute on", at(now.Add(time.Minute), now.Add(90*day)), nil, ""},
		{"from just within the skew on", at(now.Add(skew), now.Add(90*day)), nil, ""},
		{"from just beyond the skew on", at(now.Add(skew+time.Second), now.Add(90*day)), nil, "begins at"},
		{"from tomorrow on", at(now.Add(day), now.Add(90*day)), nil, "begins at"},
		{"until yesterday", at(now.Add(-9*day), now.Add(-day)), nil, "expired"},
		{"until for ever", at(now.Add(-day), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)), nil, ""},

		// For whom: the subject.
		{"for another common name", named(func(n *pkix.Name) { n.CommonName = "sensor-2" }), nil, "lacks CN=sensor-1"},
		{"for the common name in capitals", named(func(n *pkix.Name) { n.CommonName = "Sensor-1" }), nil, "lacks CN=sensor-1"},
		{"for no common name", named(func(n *pkix.Name) { n.CommonName = "" }), nil, "lacks CN=sensor-1"},
		{"for a second common name", named(func(n *pkix.Name) { n.ExtraNames = []pkix.AttributeTypeAndValue{cn("sensor-2"), cn("sensor-1")} }),
			nil, "common name CN=sensor-2, which was not asked for"},
		{"for another organization", named(func(n *pkix.Name) { n.Organization = []string{"Evil"} }), nil, "lacks O=Acme"},
		{"for no organization", named(func(n *pkix.Name) { n.Organization = nil }), nil, "lacks O=Acme"},
		{"for nobody", named(func(n *pkix.Name) { *n = pkix.Name{} }), nil, "lacks"},
		{"with a unit and a country", named(func(n *pkix.Name) { n.OrganizationalUnit, n.Country = []string{"Field"}, []string{"DE"} }),
			[]string{"subject: added C=DE", "subject: added OU=Field"}, ""},
		{"with a unit that writes to the terminal", named(func(n *pkix.Name) { n.OrganizationalUnit = []string{"a\x1b[2Jb"} }),
			[]string{`subject: added OU=a [2Jb`}, ""},
		{"with its subject in other types of string", func(tmpl *x509.Certificate) {
			tmpl.RawSubject = utf8Name("O", "Acme", "CN", "sensor-1")
		}, nil, ""},
		{"with its subject in another order", func(tmpl *x509.Certificate) {
			tmpl.RawSubject = utf8Name("CN", "sensor-1", "O", "Acme")
		}, nil, ""},

		// For whom: alternative names.
		{"without alternative names", func(tmpl *x509.Certificate) { tmpl.DNSNames, tmpl.IPAddresses = nil, nil }, nil, "lacks DNS name sensor-1.example"},
		{"without the address", func(tmpl *x509.Certificate) { tmpl.IPAddresses = nil }, nil, "lacks address 192.0.2.1"},
		{"for another host", func(tmpl *x509.Certificate) { tmpl.DNSNames = []string{"evil.example"} }, nil, "lacks DNS name sensor-1.example"},
		{"with more alternative names", func(tmpl *x509.Certificate) {
			tmpl.DNSNames = append(tmpl.DNSNames, "b.example")
			tmpl.EmailAddresses, tmpl.URIs = []string{"a@b.example"}, []*url.URL{{Scheme: "urn", Opaque: "c"}}
		}, []string{
			"subject alternative name: added DNS name b.example",
			"subject alternative name: added email a@b.example",
			"subject alternative name: added URI urn:c",
		}, ""},
		{"with an alternative name that Go cannot read", func(tmpl *x509.Certificate) {
			names, err := asn1.Marshal([]asn1.RawValue{
				{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("sensor-1.example")},
				{Class: asn1.ClassContextSpecific, Tag: 7, Bytes: []byte{192, 0, 2, 1}},
				{Class: asn1.ClassContextSpecific, Tag: 8, Bytes: []byte{0x2a, 0x03}},
			})
			must(err)
			tmpl.ExtraExtensions = []pkix.Extension{{Id: oidAltName, Value: names}}
		}, []string{"subject alternative name: added a name of kind 8"}, ""},
		{"with a phone book", func(tmpl *x509.Certificate) {
			for i := range changeLimit + 1 {
				tmpl.DNSNames = append(tmpl.DNSNames, fmt.Sprintf("host-%d.example", i))
			}
		}, nil, "17 additions"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t)
			s.issue = func(csr *x509.CertificateRequest) []*x509.Certificate { return raw(certify(csr, tc.edit)) }
			issued, err := s.client(t).Enroll(t.Context(), ask(alt))
			if tc.refused != "" {
				check(t, err, "answer", tc.refused)
				if issued.Chain != nil {
					t.Error("a chain was returned, too")
				}
				return
			}
			check(t, err, "no error", "")
			if !slices.Equal(issued.Changes, tc.changes) {
				t.Errorf("changes are %q, want %q", issued.Changes, tc.changes)
			}
		})
	}
}

// utf8Name is a subject with UTF8Strings only.
func utf8Name(pairs ...string) []byte {
	oids := map[string]asn1.ObjectIdentifier{"CN": oidCommonName, "O": {2, 5, 4, 10}}
	var name pkix.RDNSequence
	for i := 0; i < len(pairs); i += 2 {
		value := asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(pairs[i+1])}
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: oids[pairs[i]], Value: value}})
	}
	der, err := asn1.Marshal(name)
	must(err)
	return der
}

// Each row is what a trusted server may put into its answer instead of the
// certificate.
func TestCertificatesOfTheWrongKind(t *testing.T) {
	otherKey := newKey()
	constrained := root.ca("constrained", func(tmpl *x509.Certificate) {
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	expired := root.ca("expired", func(tmpl *x509.Certificate) { tmpl.NotAfter = now.Add(-time.Hour) })
	for _, tc := range []struct {
		name  string
		issue func(csr *x509.CertificateRequest) []*party
		says  string
	}{
		{"for another key", func(*x509.CertificateRequest) []*party { return []*party{issuing.device(otherKey)} }, "none of its certificates is for our key"},
		{"the CA's own only", func(*x509.CertificateRequest) []*party { return []*party{issuing, root} }, "none of its certificates is for our key"},
		{"from another root", func(csr *x509.CertificateRequest) []*party { return []*party{certifyBy(foreign, csr), foreign} }, "unknown authority"},
		{"from a root with the name of ours", func(csr *x509.CertificateRequest) []*party {
			return []*party{certifyBy(namesake, csr), namesake}
		}, "unknown authority"},
		{"signed by itself", func(*x509.CertificateRequest) []*party { return []*party{(*party)(nil).device(deviceKey)} }, "unknown authority"},
		{"signed by another device", func(csr *x509.CertificateRequest) []*party {
			mallory := issuing.device(otherKey)
			return []*party{certifyBy(mallory, csr), mallory, issuing}
		}, "parent certificate cannot sign"},
		{"from a CA for servers", func(csr *x509.CertificateRequest) []*party {
			return []*party{certifyBy(constrained, csr), constrained}
		}, "incompatible key usage"},
		{"from a CA that expired", func(csr *x509.CertificateRequest) []*party {
			return []*party{certifyBy(expired, csr), expired}
		}, "expired"},
		{"from a CA that nobody shows", func(csr *x509.CertificateRequest) []*party {
			return []*party{certifyBy(root.ca("hidden"), csr)}
		}, "unknown authority"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t)
			s.issue = func(csr *x509.CertificateRequest) []*x509.Certificate { return raw(tc.issue(csr)...) }
			_, err := s.client(t).Enroll(t.Context(), ask())
			check(t, err, "answer", tc.says)
		})
	}
}

// Without a synchronised clock there is no future, and no past but the floor.
func TestDatesWithoutASynchronisedClock(t *testing.T) {
	floor := now
	for name, tc := range map[string]struct {
		from, to time.Time
		refused  string
	}{
		"from tomorrow on":         {now.Add(day), now.Add(90 * day), ""},
		"until before the floor":   {now.Add(-9 * day), now.Add(-day), "expired"},
		"beyond what is plausible": {now.AddDate(16, 0, 0), now.AddDate(17, 0, 0), "years after"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			s.issue = func(csr *x509.CertificateRequest) []*x509.Certificate {
				return raw(certify(csr, func(tmpl *x509.Certificate) { tmpl.NotBefore, tmpl.NotAfter = tc.from, tc.to }))
			}
			c := s.client(t, func(conf *Config) { conf.Clock = clock.Fixed(clock.Build(), floor, time.Unix(0, 0), false) })
			_, err := c.Enroll(t.Context(), ask())
			if tc.refused == "" {
				check(t, err, "no error", "")
			} else {
				check(t, err, "answer", tc.refused)
			}
		})
	}
}

func TestIntermediatesFromCACerts(t *testing.T) {
	// A CA that changed its issuing certificate often shows them all. Only those that
	// bear the right name are looked at.
	var many []*party
	for i := range 20 {
		many = append(many, root.ca(fmt.Sprintf("issuing %d", i)))
	}
	for name, tc := range map[string]struct {
		cacerts http.HandlerFunc
		kind    string
		says    string
	}{
		"among many":      {respond(200, rightType, base64Of(certsOnly(raw(append(many, root, issuing)...)...))), "no error", ""},
		"not there":       {respond(404, "", ""), "answer", "unknown authority"},
		"not there now":   {respond(503, "", ""), "unavailable", "503"},
		"not a message":   {respond(200, rightType, "MAA="), "answer", "unknown authority"},
		"of another CA":   {respond(200, rightType, base64Of(certsOnly(raw(foreign)...))), "answer", "unknown authority"},
		"a new root, too": {respond(200, rightType, base64Of(certsOnly(raw(namesake, issuing)...))), "no error", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			s.handle[opCACerts] = tc.cacerts
			_, err := s.client(t).Enroll(t.Context(), ask())
			check(t, err, tc.kind, tc.says)
		})
	}
}

// That a server sends a root does not make it one.
func TestARootFromCACertsIsNotAnAnchor(t *testing.T) {
	s := serve(t)
	s.handle[opCACerts] = respond(200, rightType, base64Of(certsOnly(raw(foreign)...)))
	s.issue = func(csr *x509.CertificateRequest) []*x509.Certificate { return raw(certifyBy(foreign, csr)) }
	_, err := s.client(t).Enroll(t.Context(), ask())
	check(t, err, "answer", "unknown authority")
}

// A key that shows one public part and signs with another private part: a handle
// that was mixed up.
type mixedUpKey struct {
	crypto.Signer
	sign crypto.Signer
}

func (k *mixedUpKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.sign.Sign(rand, digest, opts)
}

func TestTheKeyIsTried(t *testing.T) {
	c := serve(t).client(t)
	req := ask()
	req.Key = &mixedUpKey{deviceKey, newKey()}
	_, err := c.Enroll(t.Context(), req)
	check(t, err, "answer", "does not verify under the certificate")

	req.Key = &publicOnly{deviceKey.Public()}
	if _, err := c.Enroll(t.Context(), req); kind(err) != "an error of 0 kinds" || !strings.Contains(err.Error(), "it is elsewhere") {
		t.Errorf("got %s, %v, want the key's own error", kind(err), err)
	}
}

func pendingFor(err error) time.Duration {
	var pending *PendingError
	if !errors.As(err, &pending) {
		return 0
	}
	return pending.RetryAfter
}
