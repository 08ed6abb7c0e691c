package est

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"net/http"
)

// bodyLimit is in bytes: a request carries names, a key, and evidence about it.
const bodyLimit = 64 << 10

// readRequest reads the certificate request in the body of an HTTP request.
func readRequest(w http.ResponseWriter, r *http.Request) (*x509.CertificateRequest, error) {
	// Go folds the media type, not its parameters. A Content-Transfer-Encoding means
	// nothing, whatever it says (RFC 8951 section 3).
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/pkcs10" {
		return nil, refusal(http.StatusUnsupportedMediaType, "the body is of type %q, want application/pkcs10", r.Header.Get("Content-Type"))
	}
	tooLarge := refusal(http.StatusRequestEntityTooLarge, "the request has more than %d bytes", bodyLimit)
	// Who asks first (RFC 9110, 10.1.1) hears no before it sends. Of the others as much is
	// read as there may be: they are not listening yet, and a connection that is closed
	// on what they send would take the answer away from them.
	if r.ContentLength > bodyLimit && r.Header.Get("Expect") != "" {
		return nil, tooLarge
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	var limit *http.MaxBytesError
	if errors.As(err, &limit) {
		return nil, tooLarge
	} else if err != nil {
		return nil, refusal(http.StatusBadRequest, "cannot read the request: %v", err)
	}
	return decodeRequest(body)
}

// decodeRequest takes base64, with or without line ends (RFC 8951 3.1), of a PKCS #10
// request in DER. A NUL at the end is what C programs leave there.
func decodeRequest(body []byte) (*x509.CertificateRequest, error) {
	text := bytes.Map(func(r rune) rune {
		switch r {
		case '\r', '\n', ' ', '\t':
			return -1
		}
		return r
	}, bytes.TrimSuffix(body, []byte{0}))
	der := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(der, text)
	if err != nil {
		return nil, refusal(http.StatusBadRequest, "the body is not base64, without PEM's first and last line: %v", err)
	}
	csr, err := x509.ParseCertificateRequest(der[:n])
	if err != nil {
		return nil, refusal(http.StatusBadRequest, "the body is no PKCS #10 request: %v", err)
	}
	return csr, nil
}

// oidChallenge is challengePassword (RFC 2985 5.4.1).
var oidChallenge = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}

// challenges are the values of challengePassword in a request. crypto/x509 knows only
// attributes whose values are sequences.
func challenges(csr *x509.CertificateRequest) (values []string, err error) {
	var info struct {
		Version            int
		Subject, PublicKey asn1.RawValue
		Attributes         []struct {
			Type   asn1.ObjectIdentifier
			Values []asn1.RawValue `asn1:"set"`
		} `asn1:"set,tag:0"`
	}
	if _, err := asn1.Unmarshal(csr.RawTBSCertificateRequest, &info); err != nil {
		return nil, refusal(http.StatusBadRequest, "the attributes of the request cannot be read: %v", err)
	}
	for _, attr := range info.Attributes {
		if !attr.Type.Equal(oidChallenge) {
			continue
		}
		for _, v := range attr.Values {
			var text string
			if _, err := asn1.Unmarshal(v.FullBytes, &text); err != nil {
				return nil, refusal(http.StatusBadRequest, "the challengePassword of the request is no string: %v", err)
			}
			values = append(values, text)
		}
	}
	return values, nil
}

// checkBinding holds the channel binding in a request against its connection (RFC 7030
// 3.5): who sent the request is who signed it.
func (h *handler) checkBinding(csr *x509.CertificateRequest, conn *tls.ConnectionState) error {
	values, err := challenges(csr)
	if err != nil || len(values) == 0 && !h.mustBind {
		return err
	}
	binding := conn.TLSUnique
	if conn.Version >= tls.VersionTLS13 {
		if binding, err = conn.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil { // RFC 9266 section 2
			return err
		}
	}
	if len(values) != 1 || len(binding) == 0 || values[0] != base64.StdEncoding.EncodeToString(binding) {
		return refusal(http.StatusForbidden, "the challengePassword of the request is not the channel binding of this connection")
	}
	return nil
}
