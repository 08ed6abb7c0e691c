package enroll

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"mime"

	"birthmark/pkg/cms"
)

// certificates are those of a certs-only message (RFC 7030, 4.1.3 and 4.2.3). There
// is at least one.
func (a *answer) certificates() ([]*x509.Certificate, error) {
	der, err := a.decode("application/pkcs7-mime")
	if err != nil {
		return nil, err
	}
	certs, err := cms.Certificates(der)
	if err != nil {
		return nil, answerErrorf("%v", err)
	}
	return certs, nil
}

// decode returns the bytes in an answer, which must be of the given media type.
// Parameters are not looked at, servers write what they like there; nor is
// Content-Transfer-Encoding (RFC 8951, 3).
func (a *answer) decode(mediaType string) ([]byte, error) {
	declared := a.header.Get("Content-Type")
	if declared == "" { // then it is somebody's error page
		return nil, answerErrorf("no Content-Type; its text is %q", said(string(a.body)))
	}
	// ErrInvalidMediaParameter comes with a good type.
	got, _, err := mime.ParseMediaType(declared)
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) || got != mediaType {
		return nil, answerErrorf("Content-Type %q, want %s", said(declared), mediaType)
	}
	if bytes.HasPrefix(a.body, []byte("-----BEGIN ")) {
		return decodePEM(a.body)
	}
	return decodeBase64(a.body)
}

// decodeBase64 reads base64 as servers write it: with blanks anywhere
// (RFC 8951, 3.1), and with the NUL that ends a string in C, which libest sends.
func decodeBase64(body []byte) ([]byte, error) {
	text := bytes.Map(func(r rune) rune {
		switch r {
		case '\r', '\n', ' ', '\t':
			return -1
		}
		return r
	}, body)
	der, err := base64.StdEncoding.AppendDecode(nil, bytes.TrimSuffix(text, []byte{0}))
	if err != nil {
		return nil, answerErrorf("not base64: %v", err)
	}
	return der, nil
}

// decodePEM reads the armour that some servers put around a message. A certificate
// in armour of its own is not what was asked for.
func decodePEM(body []byte) ([]byte, error) {
	block, rest := pem.Decode(body)
	switch {
	case block == nil:
		return nil, answerErrorf("PEM that cannot be read")
	case block.Type != "PKCS7" && block.Type != "CMS":
		return nil, answerErrorf("PEM of a %q, want PKCS7", said(block.Type))
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, answerErrorf("text after the end of PEM")
	}
	return block.Bytes, nil
}
