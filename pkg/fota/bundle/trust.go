package bundle

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
)

// Names of the files in which a device has whom it believes.
const (
	AnchorsFile = "anchors.pem"     // where chains end
	IssuersFile = "signing-cas.pem" // CAs whose leaves may sign
	CRLsFile    = "crls.pem"        // what those have revoked
)

const (
	trustLimit = 2 << 20 // bytes of files for one purpose; some 36,000 entries of CRLs
	trustCount = 32      // certificates, or CRLs
)

// TrustFiles are where it is written whom to believe. A file has certificates, or CRLs,
// in PEM with nothing but text between (RFC 7468, 2), or one in DER, as CAs publish CRLs.
// A file that has nothing, or anything else, is of no use: the PEM decoder would pass over
// what it cannot read, and with it over who was revoked.
type TrustFiles struct {
	Anchors, Issuers []string // the first that is there counts
	CRLs             []string // all that are there count: a CRL can only take away
}

// TrustIn are the files in folders, the one that counts first before the others.
func TrustIn(folders ...string) (f TrustFiles) {
	for _, folder := range folders {
		f.Anchors = append(f.Anchors, filepath.Join(folder, AnchorsFile))
		f.Issuers = append(f.Issuers, filepath.Join(folder, IssuersFile))
		f.CRLs = append(f.CRLs, filepath.Join(folder, CRLsFile))
	}
	return f
}

// Read reads the files into a [cms.Trust]; the time, and what goes by it, is for the
// caller to fill in. Without anchors, issuers or CRLs nobody is believed, so that is
// refused here, as is a file that cannot be used: at [fota.StageChain], with the codes
// anchors, issuers and crl.
func (f TrustFiles) Read() (*cms.Trust, error) {
	t := &cms.Trust{}
	var err error
	if t.Anchors, err = readTrust("CERTIFICATE", x509.ParseCertificate, f.Anchors, 1); err != nil {
		return nil, fota.Refuse(fota.StageChain, "anchors", "%w", err)
	}
	if t.Issuers, err = readTrust("CERTIFICATE", x509.ParseCertificate, f.Issuers, 1); err != nil {
		return nil, fota.Refuse(fota.StageChain, "issuers", "%w", err)
	}
	if t.CRLs, err = readTrust("X509 CRL", cms.ReadCRL, f.CRLs, len(f.CRLs)); err != nil {
		return nil, fota.Refuse(fota.StageChain, "crl", "%w", err)
	}
	return t, nil
}

// readTrust reads things of one kind from the first most of the files at paths that are
// there. One has to be.
func readTrust[T any](kind string, parse func(der []byte) (T, error), paths []string, most int) (all []T, err error) {
	room := int64(trustLimit)
	for _, path := range paths {
		if most == 0 {
			break
		}
		// A link that leads nowhere is not passed over: it was meant to be used.
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		text, err := readFile(path, room)
		if err != nil {
			return nil, err
		}
		some, err := parseTrust(text, kind, parse)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all, room, most = append(all, some...), room-int64(len(text)), most-1
	}
	switch {
	case all == nil:
		return nil, fmt.Errorf("there is no %s", cmp.Or(strings.Join(paths, ", and no "), "file for it"))
	case len(all) > trustCount:
		return nil, fmt.Errorf("%s: %d in all, limit %d", strings.Join(paths, " and "), len(all), trustCount)
	}
	return all, nil
}

// readFile reads a file, for which there is room.
func readFile(path string, room int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would wait for who writes
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, room+1))
	if err == nil && int64(len(text)) > room {
		err = fmt.Errorf("%s: more than %d MiB in all", path, trustLimit>>20)
	}
	return text, err
}

// parseTrust reads a text with one thing or more, all of one kind.
func parseTrust[T any](text []byte, kind string, parse func(der []byte) (T, error)) (all []T, err error) {
	if sequence := []byte{0x30}; bytes.HasPrefix(text, sequence) { // no dash
		one, err := parse(text)
		return []T{one}, err
	}
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != kind || len(block.Headers) > 0 {
			return nil, fmt.Errorf("it holds a %q, want only %q", block.Type, kind)
		}
		one, err := parse(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("number %d in it: %w", len(all)+1, err)
		}
		all = append(all, one)
	}
	switch begun := bytes.Count(text, []byte("-----BEGIN")); {
	case begun == 0:
		return nil, fmt.Errorf("it holds no %q in PEM", kind)
	case begun != len(all):
		return nil, fmt.Errorf("it begins %d times, and %d were read", begun, len(all))
	}
	return all, nil
}
