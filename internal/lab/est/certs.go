package est

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net/http"
)

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
)

// certsOnly is a SignedData without content and signers, around certificates (RFC 5652
// sections 3 and 5.1, RFC 7030 4.1.3).
func certsOnly(certs ...*x509.Certificate) ([]byte, error) {
	type content struct{ Type asn1.ObjectIdentifier }
	type signedData struct {
		Version          int
		DigestAlgorithms []pkix.AlgorithmIdentifier `asn1:"set"`
		Content          content
		Certificates     []asn1.RawValue `asn1:"set,tag:0"`
		SignerInfos      []asn1.RawValue `asn1:"set"`
	}
	type contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content signedData `asn1:"explicit,tag:0"`
	}
	data := signedData{Version: 1, Content: content{oidData}}
	for _, cert := range certs {
		data.Certificates = append(data.Certificates, asn1.RawValue{FullBytes: cert.Raw})
	}
	der, err := asn1.Marshal(contentInfo{oidSignedData, data})
	if err != nil {
		return nil, fmt.Errorf("cannot encode certificates: %w", err)
	}
	return der, nil
}

func writeCertificates(w http.ResponseWriter, certs ...*x509.Certificate) error {
	der, err := certsOnly(certs...)
	if err != nil {
		return err
	}
	write(w, http.StatusOK, "application/pkcs7-mime; smime-type=certs-only", encode(der))
	return nil
}
