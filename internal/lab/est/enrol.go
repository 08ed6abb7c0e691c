package est

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"birthmark/internal/lab/ca"
)

// A client has shown who it is, by one of two things.
type client struct {
	id          string
	certificate *x509.Certificate
	password    string
	renews      bool // certificate
}

func (c client) proof() string {
	if c.certificate != nil {
		return "certificate"
	}
	return "password"
}

// mayEnrol finds out who uses simpleenroll. The certificate is looked at first: a
// device that has both may have used up its password with an earlier key.
func (h *handler) mayEnrol(r *http.Request) (client, error) {
	cert, certErr := verify(r.TLS.PeerCertificates, h.Clients, nil)
	if cert != nil {
		return client{id: cert.Subject.CommonName, certificate: cert}, nil
	}
	id, password, given := r.BasicAuth()
	switch {
	case given:
		err := h.CA.Passwords().Verify(id, password)
		if errors.Is(err, ca.ErrPassword) {
			return client{}, refusal(http.StatusUnauthorized, "%v", err)
		}
		return client{id: id, password: password}, err
	case certErr != nil:
		return client{}, certErr
	default:
		return client{}, refusal(http.StatusUnauthorized, "neither a client certificate nor a password")
	}
}

// mayRenew finds out who uses simplereenroll.
func (h *handler) mayRenew(r *http.Request) (client, error) {
	cert, err := verify(r.TLS.PeerCertificates, []*x509.Certificate{h.CA.Root()}, h.CA.Issuing())
	if err != nil {
		return client{}, err
	}
	if cert == nil {
		return client{}, refusal(http.StatusForbidden, "no client certificate: simplereenroll wants the one that is to be renewed")
	}
	return client{id: cert.Subject.CommonName, certificate: cert, renews: true}, nil
}

// verify returns the client's certificate, nil if it showed none, if it is one for a
// client, and a way leads from it to one of roots.
func verify(shown, roots []*x509.Certificate, intermediate *x509.Certificate) (*x509.Certificate, error) {
	if len(shown) == 0 {
		return nil, nil
	}
	o := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, cert := range roots {
		o.Roots.AddCert(cert)
	}
	for _, cert := range shown[1:] {
		o.Intermediates.AddCert(cert)
	}
	if intermediate != nil {
		o.Intermediates.AddCert(intermediate)
	}
	if _, err := shown[0].Verify(o); err != nil {
		return nil, refusal(http.StatusForbidden, "client certificate %.80q: %v", shown[0].Subject.String(), err)
	}
	return shown[0], nil
}

// enrol serves simpleenroll and simplereenroll, which differ in who may use them, and
// in what the CA does.
func (h *handler) enrol(who func(*http.Request) (client, error),
	issue func(*x509.CertificateRequest, ca.Profile) (*x509.Certificate, error)) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		c, err := who(r)
		if err != nil {
			return err
		}
		csr, err := readRequest(w, r)
		if err != nil {
			return err
		}
		if err := h.check(csr, c, r); err != nil {
			return err
		}
		if h.Hold != nil {
			if wait := h.Hold(csr); wait > 0 {
				h.log.Info("request held", "path", r.URL.Path, "peer", r.RemoteAddr, "subject", csr.Subject.String(), "wait", wait)
				// RFC 7030 4.2.3: the client asks again, with the same request.
				w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
				write(w, http.StatusAccepted, "text/plain; charset=utf-8", []byte("the request waits for approval\n"))
				return nil
			}
		}
		cert, err := issue(csr, h.Profile)
		if err != nil {
			return err
		}
		h.log.Info("certificate issued", "path", r.URL.Path, "peer", r.RemoteAddr, "subject", cert.Subject.String(),
			"serial", hex.EncodeToString(cert.SerialNumber.Bytes()), "profile", h.Profile.String(), "until", cert.NotAfter.Format(time.RFC3339), "by", c.proof())
		return writeCertificates(w, cert)
	}
}

// check decides whether a client may have what it asks for. A password is bound to
// the key when all else is found to be right.
func (h *handler) check(csr *x509.CertificateRequest, c client, r *http.Request) error {
	if err := h.Profile.Check(csr); err != nil {
		return err
	}
	if err := h.checkBinding(csr, r.TLS); err != nil {
		return err
	}
	if csr.Subject.CommonName != c.id {
		return refusal(http.StatusForbidden, "the request is for %.80q, the %s is of %.80q", csr.Subject.CommonName, c.proof(), c.id)
	}
	if c.renews && !sameNames(csr, c.certificate) {
		return refusal(http.StatusForbidden, "subject and subjectAltName are not those of the certificate that is to be renewed")
	}
	if c.certificate != nil {
		return nil
	}
	err := h.CA.Passwords().Bind(c.id, c.password, csr.RawSubjectPublicKeyInfo)
	switch {
	case errors.Is(err, ca.ErrPassword):
		return refusal(http.StatusUnauthorized, "%v", err)
	case errors.Is(err, ca.ErrBound):
		return refusal(http.StatusForbidden, "%v", err)
	}
	return err
}

// sameNames reports whether subject and subjectAltName are the same, byte for byte
// (RFC 7030 4.2.2).
func sameNames(csr *x509.CertificateRequest, cert *x509.Certificate) bool {
	return bytes.Equal(csr.RawSubject, cert.RawSubject) && bytes.Equal(altNames(csr.Extensions), altNames(cert.Extensions))
}

// altNames is the value of the extension subjectAltName, nil without it.
func altNames(extensions []pkix.Extension) []byte {
	for _, e := range extensions {
		if e.Id.Equal(oidAltNames) {
			return e.Value
		}
	}
	return nil
}

var oidAltNames = asn1.ObjectIdentifier{2, 5, 29, 17}
