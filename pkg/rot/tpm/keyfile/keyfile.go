// Package keyfile reads and writes TPM-wrapped keys in the form that other
// programs share: PEM blocks of type "TSS2 PRIVATE KEY"
// (draft-woodhouse-cert-best-practice, section 3; the ASN.1 module of
// openssl_tpm2_engine). With tpm2-openssl, such a file serves as the private key
// of curl, mosquitto and nginx. No secret is in it: the private part can only be
// opened by the TPM that holds the parent.
//
//	TPMKey ::= SEQUENCE {
//		type        OBJECT IDENTIFIER,                      -- loadable key
//		emptyAuth   [0] EXPLICIT BOOLEAN OPTIONAL,
//		policy      [1] EXPLICIT SEQUENCE OPTIONAL,         -- not read
//		secret      [2] EXPLICIT OCTET STRING OPTIONAL,     -- not read
//		authPolicy  [3] EXPLICIT SEQUENCE OPTIONAL,         -- not read
//		description [4] EXPLICIT UTF8String OPTIONAL,
//		rsaParent   [5] EXPLICIT BOOLEAN OPTIONAL,
//		parent      INTEGER,
//		pubkey      OCTET STRING,                           -- TPM2B_PUBLIC
//		privkey     OCTET STRING }                          -- TPM2B_PRIVATE
//
// Files that need a policy or an import before they load are refused, since
// nothing here could use them.
package keyfile

import (
	"bytes"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"
)

// SizeLimit is how many bytes a key file may have. An RSA-4096 key needs 2,700.
const SizeLimit = 16 << 10

const pemType = "TSS2 PRIVATE KEY"

// loadable is the type of a key that TPM2_Load takes as it is.
var loadable = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}

// A Key is what a key file says.
type Key struct {
	Parent      uint32 // TPM handle of the parent, such as 0x81000001
	Public      []byte // TPM2B_PUBLIC, size included
	Private     []byte // TPM2B_PRIVATE, size included
	EmptyAuth   bool   // no authorization value is needed
	RSAParent   bool   // Parent is a hierarchy whose primary key is RSA
	Description string // for people, may be empty
}

// Marshal returns the key file of k. The parent is written as a positive INTEGER,
// which all readers take.
func Marshal(k Key) ([]byte, error) {
	if err := k.check(); err != nil {
		return nil, fmt.Errorf("cannot write key file: %w", err)
	}
	der, err := asn1.Marshal(struct {
		Type        asn1.ObjectIdentifier
		EmptyAuth   bool   `asn1:"optional,explicit,tag:0"`
		Description string `asn1:"optional,explicit,tag:4,utf8"`
		RSAParent   bool   `asn1:"optional,explicit,tag:5"`
		Parent      int64
		Public      []byte
		Private     []byte
	}{loadable, k.EmptyAuth, k.Description, k.RSAParent, int64(k.Parent), k.Public, k.Private})
	if err != nil {
		return nil, fmt.Errorf("cannot write key file: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
	if len(text) > SizeLimit {
		return nil, fmt.Errorf("cannot write key file: %d bytes, at most %d", len(text), SizeLimit)
	}
	return text, nil
}

// Parse reads a key file: one PEM block and nothing else but white space, DER.
func Parse(text []byte) (Key, error) {
	k, err := parse(text)
	if err == nil {
		err = k.check()
	}
	if err != nil {
		return Key{}, fmt.Errorf("cannot read key file: %w", err)
	}
	return k, nil
}

func parse(text []byte) (Key, error) {
	if len(text) > SizeLimit {
		return Key{}, fmt.Errorf("%d bytes, at most %d", len(text), SizeLimit)
	}
	text = bytes.TrimSpace(text)
	if !bytes.HasPrefix(text, []byte("-----BEGIN "+pemType+"-----")) {
		return Key{}, fmt.Errorf("it does not begin with a %q block", pemType)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != pemType {
		return Key{}, errors.New("broken PEM")
	}
	if len(rest) > 0 || len(block.Headers) > 0 {
		return Key{}, errors.New("there is more in it than one key")
	}
	return parseDER(block.Bytes)
}

func parseDER(der []byte) (k Key, err error) {
	var seq asn1.RawValue
	if err := unmarshalAll(der, &seq, ""); err != nil {
		return k, err
	}
	if seq.Class != asn1.ClassUniversal || seq.Tag != asn1.TagSequence || !seq.IsCompound {
		return k, errors.New("not a SEQUENCE")
	}
	var kind asn1.ObjectIdentifier
	rest, err := asn1.Unmarshal(seq.Bytes, &kind)
	if err != nil {
		return k, err
	}
	if !kind.Equal(loadable) {
		return k, fmt.Errorf("key type %v, can only use loadable keys (%v)", kind, loadable)
	}
	if rest, err = k.parseOptions(rest); err != nil {
		return k, err
	}
	var parent int64
	if rest, err = asn1.Unmarshal(rest, &parent); err != nil {
		return k, err
	}
	if k.Parent, err = handle(parent); err != nil {
		return k, err
	}
	if rest, err = asn1.Unmarshal(rest, &k.Public); err != nil {
		return k, err
	}
	return k, unmarshalAll(rest, &k.Private, "")
}

// parseOptions reads the tagged elements before the parent, each at most once
// and in order.
func (k *Key) parseOptions(rest []byte) ([]byte, error) {
	for last := -1; ; {
		var option asn1.RawValue
		after, err := asn1.Unmarshal(rest, &option)
		if err != nil {
			return nil, err
		}
		if option.Class != asn1.ClassContextSpecific {
			return rest, nil
		}
		if option.Tag <= last || !option.IsCompound {
			return nil, fmt.Errorf("misplaced element [%d]", option.Tag)
		}
		switch last = option.Tag; option.Tag {
		case 0:
			err = unmarshalAll(option.Bytes, &k.EmptyAuth, "")
		case 4:
			err = unmarshalAll(option.Bytes, &k.Description, "utf8")
		case 5:
			err = unmarshalAll(option.Bytes, &k.RSAParent, "")
		case 1, 3:
			err = errors.New("the key needs a policy, which is not supported")
		case 2:
			err = errors.New("the key has to be imported first, which is not supported")
		default:
			err = fmt.Errorf("unknown element [%d]", option.Tag)
		}
		if err != nil {
			return nil, err
		}
		rest = after
	}
}

func unmarshalAll(der []byte, v any, params string) error {
	rest, err := asn1.UnmarshalWithParams(der, v, params)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes too many", len(rest))
	}
	return err
}

// handle takes the parent also in the negative form that some tools write, a
// signed 32-bit number: DER has no unsigned ones, and 0x81000001 has its top bit
// set.
func handle(parent int64) (uint32, error) {
	if parent < math.MinInt32 || parent > math.MaxUint32 {
		return 0, fmt.Errorf("parent %#x is no TPM handle", parent)
	}
	return uint32(parent), nil
}

// check holds for every Key that is read or written.
func (k *Key) check() error {
	if !sized(k.Public) {
		return errors.New("the public part is no TPM2B_PUBLIC")
	}
	if !sized(k.Private) {
		return errors.New("the private part is no TPM2B_PRIVATE")
	}
	if !utf8.ValidString(k.Description) {
		return errors.New("the description is not UTF-8")
	}
	return nil
}

// sized tells whether b is a non-empty TPM2B: two bytes of size, then as much.
func sized(b []byte) bool {
	return len(b) > 2 && int(binary.BigEndian.Uint16(b)) == len(b)-2
}
