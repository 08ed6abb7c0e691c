package tpm

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

const (
	ekRangeFirst = tpm2.TPMHandle(0x01C00000) // NV indices of the chip maker, TCG registry
	ekRangeLast  = tpm2.TPMHandle(0x01C07FFF)

	certificateLimit = 8 << 10 // bytes of an EK certificate; the largest seen have 2,000
	nvChunk          = 1024    // bytes of one NV read that nearly all TPMs allow
	nvChunkMin       = 64      // bytes of one NV read that all TPMs allow
)

// errNoSuchEK: the TPM has no endorsement key with the hash that was asked for.
var errNoSuchEK = errors.New("no such endorsement key")

// An endorsementKey is loaded; release it.
type endorsementKey struct {
	handle      tpm2.NamedHandle
	public      *tpm2.TPMTPublic
	hash        string // as in rot.Identity.EK
	certificate []byte // DER, nil when the TPM holds none
}

// findEK loads the endorsement key with the given hash or, if that is empty, the
// best one: one with a certificate, made by the template that belongs to the
// certificate's index. It is taken only when its public key is the
// certificate's, since a TPM makes a key from any template.
func (r *Root) findEK(hash string) (*endorsementKey, error) {
	templates, err := r.certified()
	if err != nil {
		return nil, err
	}
	for _, t := range templates {
		der, key, err := r.readCertificate(t.certificate)
		if err != nil {
			return nil, err
		}
		if key == nil || (hash != "" && keyHash(key) != hash) {
			continue
		}
		ek, err := r.loadEK(t, keyHash(key))
		if errors.Is(err, errNoSuchEK) {
			r.log.Warn("a certificate in the TPM belongs to no endorsement key that it makes", "index", fmt.Sprintf("%#x", t.certificate))
			continue
		}
		if err != nil {
			return nil, err
		}
		ek.certificate = der
		return ek, nil
	}
	ek, err := r.makeEK(ekTemplates[0])
	if err == nil && hash != "" && ek.hash != hash {
		return nil, errors.Join(errNoSuchEK, r.release(ek))
	}
	return ek, err
}

// certified returns the templates whose certificate the TPM holds.
func (r *Root) certified() ([]ekTemplate, error) {
	indices, err := r.handles(ekRangeFirst)
	if err != nil {
		return nil, err
	}
	var found []ekTemplate
	for _, t := range ekTemplates {
		if t.certificate <= ekRangeLast && slices.Contains(indices, t.certificate) {
			found = append(found, t)
		}
	}
	return found, nil
}

// loadEK finds the key with the given hash at the template's persistent handle,
// where it costs nothing, or lets the TPM make it.
func (r *Root) loadEK(t ekTemplate, hash string) (*endorsementKey, error) {
	public, name, err := r.readPublic(t.persistent)
	if err != nil && !isAbsent(err) {
		return nil, err
	}
	if err == nil {
		if ek, err := newEK(t.persistent, name, public); err == nil && ek.hash == hash {
			return ek, nil
		}
	}
	ek, err := r.makeEK(t)
	if err == nil && ek.hash != hash {
		return nil, errors.Join(errNoSuchEK, r.release(ek))
	}
	return ek, err
}

// makeEK is not protected by a session: there is nothing yet to salt one to. What
// is made is compared with the certificate.
func (r *Root) makeEK(t ekTemplate) (*endorsementKey, error) {
	answer, err := execute(r, tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(t.public)})
	if err != nil {
		return nil, fmt.Errorf("cannot make the endorsement key: %w", err)
	}
	public, err := answer.OutPublic.Contents()
	if err != nil {
		return nil, broken(err)
	}
	return newEK(answer.ObjectHandle, answer.Name, public)
}

func newEK(h tpm2.TPMHandle, name tpm2.TPM2BName, public *tpm2.TPMTPublic) (*endorsementKey, error) {
	a := public.ObjectAttributes
	if !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return nil, broken(errors.New("an endorsement key without the attributes of one"))
	}
	key, err := publicKey(public)
	if err != nil {
		return nil, broken(err)
	}
	return &endorsementKey{tpm2.NamedHandle{Handle: h, Name: name}, public, keyHash(key), nil}, nil
}

// release unloads what findEK loaded.
func (r *Root) release(ek *endorsementKey) error {
	if !isTransient(ek.handle.Handle) {
		return nil
	}
	return r.flush(ek.handle.Handle)
}

// keyHash is the SHA-256 of a key's SubjectPublicKeyInfo, hex.
func keyHash(key crypto.PublicKey) string {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "" // not a kind of key that any of ours is
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// readCertificate reads an EK certificate from NV. The key is nil when there is no
// certificate in it that anybody could use.
func (r *Root) readCertificate(index tpm2.TPMHandle) ([]byte, crypto.PublicKey, error) {
	public, name, err := r.readNVPublic(index)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the EK certificate at %#x: %w", index, err)
	}
	if err := mayRead(public); err != nil {
		r.warnUnusable(index, err)
		return nil, nil, nil
	}
	data, err := r.readNV(tpm2.NamedHandle{Handle: index, Name: name}, int(public.DataSize))
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the EK certificate at %#x: %w", index, err)
	}
	der, key, err := parseCertificate(data)
	if err != nil {
		r.warnUnusable(index, err)
		return nil, nil, nil
	}
	return der, key, nil
}

func (r *Root) warnUnusable(index tpm2.TPMHandle, err error) {
	r.log.Warn("the TPM's EK certificate is not usable", "index", fmt.Sprintf("%#x", index), "err", err)
}

// parseCertificate cuts the padding that chip makers leave behind a certificate
// and finds its public key. Not with x509.ParseCertificate: some EK certificates
// are not strict DER in places that do not matter here, and old ones name the key
// RSAES-OAEP.
func parseCertificate(data []byte) (der []byte, key crypto.PublicKey, err error) {
	var whole asn1.RawValue
	if _, err := asn1.Unmarshal(data, &whole); err != nil {
		return nil, nil, err
	}
	var certificate struct {
		TBS struct {
			Version                                      asn1.RawValue `asn1:"optional,explicit,tag:0"`
			Serial, Algorithm, Issuer, Validity, Subject asn1.RawValue
			SPKI                                         struct {
				Raw       asn1.RawContent
				Algorithm asn1.RawValue
				Key       asn1.BitString
			}
		}
	}
	if _, err := asn1.Unmarshal(whole.FullBytes, &certificate); err != nil {
		return nil, nil, err
	}
	spki := certificate.TBS.SPKI
	if key, err = x509.ParsePKIXPublicKey(spki.Raw); err != nil {
		if key, err = x509.ParsePKCS1PublicKey(spki.Key.RightAlign()); err != nil {
			return nil, nil, errors.New("a kind of key that no EK has")
		}
	}
	return whole.FullBytes, key, nil
}

func (r *Root) readNVPublic(index tpm2.TPMHandle) (*tpm2.TPMSNVPublic, tpm2.TPM2BName, error) {
	answer, err := execute(r, tpm2.NVReadPublic{NVIndex: index})
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	public, err := answer.NVPublic.Contents()
	if err != nil {
		return nil, tpm2.TPM2BName{}, broken(err)
	}
	return public, answer.NVName, nil
}

// mayRead tells why an NV index is none that readNV can read.
func mayRead(public *tpm2.TPMSNVPublic) error {
	switch a := public.Attributes; {
	case public.DataSize > certificateLimit:
		return fmt.Errorf("%d bytes, at most %d", public.DataSize, certificateLimit)
	case !a.Written:
		return errors.New("nothing was ever written to it")
	case !a.AuthRead, a.ReadLocked:
		return errors.New("it may not be read")
	}
	return nil
}

// readNV reads an NV index that its own, empty authorization opens.
func (r *Root) readNV(index tpm2.NamedHandle, size int) ([]byte, error) {
	var data []byte
	for chunk := nvChunk; len(data) < size; {
		n := min(chunk, size-len(data))
		part, err := execute(r, tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index.Handle, Name: index.Name, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    index,
			Size:       uint16(n),
			Offset:     uint16(len(data)),
		})
		if errors.Is(err, tpm2.TPMRCValue) && chunk > nvChunkMin { // more than TPM_PT_NV_BUFFER_MAX
			chunk /= 2
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(part.Data.Buffer) != n {
			return nil, broken(errors.New("an NV read of another size than asked for"))
		}
		data = append(data, part.Data.Buffer...)
	}
	return data, nil
}

// vendor reads the maker's and the model's name, for people.
func (r *Root) vendor() (string, error) {
	const count = 5 // TPM_PT_MANUFACTURER, TPM_PT_VENDOR_STRING_1 to _4
	answer, err := execute(r, tpm2.GetCapability{
		Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTManufacturer), PropertyCount: count,
	})
	if err != nil {
		return "", err
	}
	properties, err := answer.CapabilityData.Data.TPMProperties()
	if err != nil {
		return "", broken(err)
	}
	var words [2][]byte // manufacturer; vendor strings, which are one in four parts
	for i, p := range properties.TPMProperty[:min(count, len(properties.TPMProperty))] {
		word := &words[min(i, 1)]
		*word = binary.BigEndian.AppendUint32(*word, p.Value)
	}
	return strings.TrimSpace(printable(words[0]) + " " + printable(words[1])), nil
}

// printable drops the zero bytes that fill a property, and whatever a terminal
// would obey.
func printable(b []byte) string {
	b = bytes.Map(func(c rune) rune {
		if c < 0x20 || c > 0x7e {
			return -1
		}
		return c
	}, b)
	return strings.Join(strings.Fields(string(b)), " ")
}
