package cms

import (
	"bytes"
	"crypto/x509"
	"slices"

	"go.mozilla.org/pkcs7"
)

// agree has another reader take the message apart, and wants it to find the same. It
// is asked what the message says, never whether to believe it.
func agree(der []byte, s *Signed, info *signerInfo) error {
	differ := func(what string) error {
		return refuse("ambiguous", "two readers differ about %s", what)
	}
	other, err := pkcs7.Parse(der)
	if err != nil {
		return refuse("ambiguous", "a second reader refuses it: %w", err)
	}
	if len(other.Signers) != 1 {
		return differ("the number of its signers")
	}
	signer := other.Signers[0]
	var digest []byte
	if err := other.UnmarshalSignedAttribute(pkcs7.OIDAttributeMessageDigest, &digest); err != nil {
		return refuse("ambiguous", "a second reader finds no digest: %w", err)
	}
	switch named := other.GetOnlySigner(); {
	case !bytes.Equal(other.Content, s.Content):
		return differ("its content")
	case !slices.EqualFunc(other.Certificates, s.Certificates, (*x509.Certificate).Equal):
		return differ("its certificates")
	case named == nil || !named.Equal(s.Signer):
		return differ("its signer")
	case !bytes.Equal(digest, s.Digest):
		return differ("the digest that is signed")
	case !bytes.Equal(signer.EncryptedDigest, info.signature):
		return differ("its signature")
	}
	return nil
}
