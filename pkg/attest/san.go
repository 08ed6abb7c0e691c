package attest

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const sanTextLimit = 64 // bytes of each of the three words

// Attributes of a TPM in the profile.
var (
	oidManufacturer = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidModel        = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidVersion      = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
)

// readSAN reads the three words about the TPM from the certificate's subject
// alternative name, of which package x509 reads nothing: they
// stand in a directoryName. Other names may stand beside it.
func readSAN(c *x509.Certificate, ek *EK) error {
	var value []byte
	for _, e := range c.Extensions {
		if e.Id.Equal(oidSAN) { // x509 has refused two
			value = e.Value
		}
	}
	if value == nil {
		return errors.New("it has no subject alternative name, and so does not say which TPM it is for")
	}
	if err := parseSAN(value, ek); err != nil {
		return fmt.Errorf("its subject alternative name is not that of an EK: %w", err)
	}
	return nil
}

// parseSAN parses GeneralNames (RFC 5280, 4.2.1.6).
func parseSAN(der []byte, ek *EK) error {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &names); err != nil || len(rest) > 0 {
		return errors.New("it is malformed")
	}
	const directoryName = 4
	for _, name := range names {
		if name.Class != asn1.ClassContextSpecific || name.Tag != directoryName {
			continue
		}
		// Sets of one or of all three: chip makers do both.
		var sets []attributeSET
		if rest, err := asn1.Unmarshal(name.Bytes, &sets); err != nil || len(rest) > 0 {
			return errors.New("its directory name is malformed")
		}
		for _, set := range sets {
			for _, a := range set {
				if err := ek.take(a); err != nil {
					return err
				}
			}
		}
	}
	if ek.Manufacturer == "" || ek.Model == "" || ek.Version == "" {
		return errors.New("it does not name manufacturer, model and version of a TPM")
	}
	ek.Vendor = vendorText(ek.Manufacturer)
	return nil
}

// The name ends in SET: that makes encoding/asn1 parse one.
type attributeSET []attribute

type attribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// take stores an attribute that is one of the three.
func (ek *EK) take(a attribute) error {
	var word *string
	switch {
	case a.Type.Equal(oidManufacturer):
		word = &ek.Manufacturer
	case a.Type.Equal(oidModel):
		word = &ek.Model
	case a.Type.Equal(oidVersion):
		word = &ek.Version
	default:
		return nil
	}
	if *word != "" {
		return fmt.Errorf("it says %v twice", a.Type)
	}
	text := string(a.Value.Bytes)
	if a.Value.Class != asn1.ClassUniversal || (a.Value.Tag != asn1.TagUTF8String && a.Value.Tag != asn1.TagPrintableString) ||
		text == "" || len(text) > sanTextLimit || !utf8.ValidString(text) ||
		strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("its %v is no word of at most %d bytes", a.Type, sanTextLimit)
	}
	*word = text
	return nil
}

// vendorText is a manufacturer's number as the text that most of them are: "INTC"
// for id:494E5443; empty if it is none.
func vendorText(id string) string {
	number, isNumber := strings.CutPrefix(id, "id:")
	b, err := hex.DecodeString(number)
	if !isNumber || err != nil || len(b) != 4 {
		return ""
	}
	text := strings.TrimRight(string(b), " \x00")
	if strings.ContainsFunc(text, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
		return ""
	}
	return text
}
