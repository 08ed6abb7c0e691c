package attest

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

const (
	rootFileLimit  = 256 << 10 // bytes of one file
	rootFilesLimit = 1000      // files; about a hundred chip makers' certificates are public
)

// ReadRoots reads the certificates of chip makers from a folder: all files that are
// named *.pem, *.crt, *.cer or *.der, PEM (any number) or DER (one). What signed
// itself is a root, to be believed; the others are to be passed as VerifyEK's extra.
// A file that cannot be read is an error, since whoever put it there means it.
func ReadRoots(folder fs.FS) (roots, extra []*x509.Certificate, err error) {
	entries, err := fs.ReadDir(folder, ".")
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the chip makers' certificates: %w", err)
	}
	files := 0
	for _, e := range entries {
		if !slices.Contains([]string{".pem", ".crt", ".cer", ".der"}, strings.ToLower(path.Ext(e.Name()))) {
			continue
		}
		if files++; files > rootFilesLimit {
			return nil, nil, fmt.Errorf("cannot read the chip makers' certificates: more than %d files", rootFilesLimit)
		}
		found, err := readCertificates(folder, e.Name())
		if err != nil {
			return nil, nil, fmt.Errorf("cannot read the chip makers' certificates: %s: %w", e.Name(), err)
		}
		for _, c := range found {
			if bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil {
				roots = append(roots, c)
			} else {
				extra = append(extra, c)
			}
		}
	}
	return roots, extra, nil
}

func readCertificates(folder fs.FS, name string) (found []*x509.Certificate, err error) {
	f, err := folder.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, rootFileLimit+1))
	if err != nil {
		return nil, err
	}
	if len(text) > rootFileLimit {
		return nil, fmt.Errorf("more than %d bytes", rootFileLimit)
	}
	if block, _ := pem.Decode(text); block == nil {
		c, err := x509.ParseCertificate(text)
		return []*x509.Certificate{c}, err
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		found = append(found, c)
	}
	if len(found) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return found, nil
}
