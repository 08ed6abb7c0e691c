package board

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf16"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota/sdboot/pe"
)

const variableFolder = "sys/firmware/efi/efivars"

// A variable of UEFI, as its file is called: its name, and whose it is.
type variable string

const (
	secureBoot     variable = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c" // UEFI 2.10, 3.3
	db             variable = "db-d719b2cb-3d3a-4596-a3bc-dad00e67656f"         // UEFI 2.10, 32.4
	loaderVendor            = "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"           // Boot Loader Interface
	loaderInfo     variable = "LoaderInfo" + loaderVendor
	loaderFeatures variable = "LoaderFeatures" + loaderVendor
	entrySelected  variable = "LoaderEntrySelected" + loaderVendor
	entryOneShot   variable = "LoaderEntryOneShot" + loaderVendor
	bootCountPath  variable = "LoaderBootCountPath" + loaderVendor
)

// set sets a variable that programs may read: efivarfs has the attributes before it.
func (b *Board) set(v variable, data []byte) error {
	const attributes = 6 // boot and run time
	return os.WriteFile(b.path(variableFolder, string(v)), append(binary.LittleEndian.AppendUint32(nil, attributes), data...), 0o600)
}

func (b *Board) unset(v variable) error {
	return os.RemoveAll(b.path(variableFolder, string(v)))
}

// get is what a variable holds.
func (b *Board) get(v variable) ([]byte, error) {
	data, err := os.ReadFile(b.path(variableFolder, string(v)))
	if err == nil && len(data) < 4 {
		err = fmt.Errorf("the variable %s has %d bytes", v, len(data))
	}
	if err != nil {
		return nil, err
	}
	return data[4:], nil
}

// wide is text as UEFI writes it: UTF-16, low byte first, with a NUL at its end.
func wide(text string) (b []byte) {
	for _, unit := range utf16.Encode([]rune(text + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return b
}

func narrow(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return strings.TrimRight(string(utf16.Decode(units)), "\x00")
}

// certKind is EFI_CERT_X509_GUID, and owner nobody's GUID.
var certKind, owner = mustHex("a159c0a5e494a74a87b5ab155c2bf072"), make([]byte, 16)

func mustHex(text string) []byte {
	b, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return b
}

// signatureList is an EFI_SIGNATURE_LIST with one certificate (UEFI 2.10, 32.4.1).
func signatureList(cert []byte) []byte {
	const header = 28
	b := bytes.Clone(certKind)
	for _, n := range []int{header + len(owner) + len(cert), 0, len(owner) + len(cert)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return append(append(b, owner...), cert...)
}

// verify is what firmware does before it starts a program: its signature has to be one
// of the key in db. There is no dbx.
func (b *Board) verify(program *pe.File) error {
	digest, err := program.Digest()
	if err != nil {
		return err
	}
	for _, message := range program.Signatures() {
		s, err := cms.ReadAuthenticode(message)
		if err == nil && s.Check(digest[:]) == nil && s.Signer.Equal(b.DB.cert) {
			return nil
		}
	}
	return errors.New("security violation: nobody in db signed it")
}

// A Key signs UKIs. What it signs starts where its certificate is in db.
type Key struct {
	key, crt string // files for sbsign(1)
	cert     *x509.Certificate
}

// NewKey makes a key, in two files in the folder dir.
func NewKey(dir, name string) (*Key, error) {
	k := &Key{key: filepath.Join(dir, name+".key"), crt: filepath.Join(dir, name+".crt")}
	if err := k.make(name); err != nil {
		return nil, fmt.Errorf("cannot make the key %s for Secure Boot: %w", name, err)
	}
	return k, nil
}

func (k *Key) make(name string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(20, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if k.cert, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(k.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
		os.WriteFile(k.crt, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
}

// sign signs the program in a file.
func (k *Key) sign(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, "sbsign", "--key", k.key, "--cert", k.crt, "--output", path, path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("sbsign: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
