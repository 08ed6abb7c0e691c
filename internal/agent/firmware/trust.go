package firmware

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"birthmark/internal/config"
	"birthmark/internal/sysroot"
	"birthmark/pkg/clock"
	"birthmark/pkg/cms"
)

// Folders are where a device has the files that say whom it believes, the administrator's
// before the image's.
var Folders = []string{sysroot.Path("/etc/birthmark/firmware"), sysroot.Path("/usr/lib/birthmark/firmware")}

// Names of the files in them.
const (
	AnchorsFile    = "anchors.pem"
	SigningCAsFile = "signing-cas.pem"
	CRLsFile       = "crls.pem"
)

const crlsLimit = 4 << 20 // bytes of the file

// trust is whom the files name. CRLs may be missing: a bundle is then refused for that
// reason, which is pkg/cms's to give.
func (o *Options) trust(c *clock.Clock, folders []string) (*cms.Trust, error) {
	t := &cms.Trust{Grace: o.CRLGrace, Usage: Purposes[o.EKU], Now: c.Now(), Build: c.Verify}
	var err error
	if t.Anchors, err = certificates(o.Anchors, "--anchors", folders, AnchorsFile,
		"name a PEM file with the root certificates of the maker's code-signing CA"); err != nil {
		return nil, err
	}
	if t.Issuers, err = certificates(o.SigningCAs, "--signing-cas", folders, SigningCAsFile,
		"name a PEM file with the CA certificates that issue the signers of releases"); err != nil {
		return nil, err
	}
	t.CRLs, err = crls(cmp.Or(o.CRLs, find(folders, CRLsFile)))
	return t, err
}

// find is the path of the first file of that name; "" if there is none.
func find(folders []string, name string) string {
	for _, folder := range folders {
		path := filepath.Join(folder, name)
		// One that cannot be read, or a link that leads nowhere, is not passed over: it was
		// meant to be used.
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return path
		}
	}
	return ""
}

// certificates are those in a file that a flag names, or in the device's own.
func certificates(path, flag string, folders []string, name, advice string) ([]*x509.Certificate, error) {
	path = cmp.Or(path, find(folders, name))
	if path == "" {
		return nil, &config.Error{Msg: fmt.Sprintf("%s is missing, and there is no %s in %s: %s", flag, name, strings.Join(folders, " or "), advice)}
	}
	certs, err := config.ReadCertificates(path)
	if err != nil {
		return nil, &config.Error{Msg: err.Error()}
	}
	return certs, nil
}

// crls are those in a file: PEM, or one in DER as CAs publish it. Without a path there
// are none.
func crls(path string) ([]*x509.RevocationList, error) {
	if path == "" {
		return nil, nil
	}
	lists, err := readCRLs(path)
	if err != nil {
		return nil, &config.Error{Msg: fmt.Sprintf("cannot use the CRLs in %s: %v", path, err)}
	}
	return lists, nil
}

func readCRLs(path string) ([]*x509.RevocationList, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, crlsLimit+1))
	if err != nil {
		return nil, err
	}
	if len(text) > crlsLimit {
		return nil, fmt.Errorf("more than %d MiB", crlsLimit>>20)
	}
	return cms.ReadCRLs(text)
}
