package csr

import (
	"crypto"
	"encoding/asn1"
	"errors"
	"fmt"

	"birthmark/pkg/cms"
)

// challengeLimit is in characters (RFC 2985, appendix A: pkcs-9-ub-challengePassword).
const challengeLimit = 255

var oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7} // RFC 2985, 5.4.1

// Challenge signs a request of key's once more, with a challengePassword in it and
// all else as it is. In EST the password says over which TLS connection the request
// goes (RFC 7030, 3.5), so der is what can be kept, and what Challenge returns is good
// for one attempt.
func Challenge(der []byte, password string, key crypto.Signer) ([]byte, error) {
	der, err := challenge(der, password, key)
	if err == nil {
		err = check(der)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot put a challenge password into the certificate request: %w", err)
	}
	return der, nil
}

func challenge(der []byte, password string, key crypto.Signer) ([]byte, error) {
	if err := cms.CheckDER(der); err != nil {
		return nil, err
	}
	var req certificationRequest
	if _, err := asn1.Unmarshal(der, &req); err != nil {
		return nil, err
	}
	var info certificationRequestInfo
	if _, err := asn1.Unmarshal(req.Info.FullBytes, &info); err != nil {
		return nil, err
	}
	for _, a := range info.Attributes {
		if a.Type.Equal(oidChallengePassword) {
			return nil, errors.New("there is one already")
		}
	}
	if n := len(password); n < 1 || n > challengeLimit {
		return nil, fmt.Errorf("it has %d characters, want 1 to %d", n, challengeLimit)
	}
	value, err := asn1.MarshalWithParams(password, "printable")
	if err != nil {
		return nil, err
	}
	info.Attributes = append(info.Attributes, attribute{oidChallengePassword, []asn1.RawValue{{FullBytes: value}}})
	return sign(info, key)
}
