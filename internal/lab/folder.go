package lab

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"birthmark/internal/lab/ca"
	"birthmark/pkg/store"
)

// The CAs, by the names of their folders.
const (
	Maker = "maker"
	Owner = "owner"
)

const brokerName = "broker" // of its certificate, at the owner's CA

var (
	// ErrInUse: another lab holds the folder.
	ErrInUse = errors.New("another lab is up in this folder")
	// ErrNoLab: the folder is no lab's.
	ErrNoLab = errors.New("there is no lab in this folder")
)

// A folder is what a lab knows. It is held (flock(2)) until it is closed.
type folder struct {
	dir          string // whole path
	lock         *os.File
	maker, owner *ca.CA
	ports        ports
}

// openFolder takes a folder, and makes what is missing in it.
func openFolder(ctx context.Context, dir string) (_ *folder, err error) {
	f := &folder{}
	if f.dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, err
	}
	if f.lock, err = os.Open(f.dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if err := syscall.Flock(int(f.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, ErrInUse
	} else if err != nil {
		return nil, err
	}
	if f.maker, err = ca.Open(f.path(Maker), "Maker"); err != nil {
		return nil, err
	}
	if f.owner, err = ca.Open(f.path(Owner), "Owner"); err != nil {
		return nil, err
	}
	if f.ports, err = keepPorts(ctx, f.path("lab.json")); err != nil {
		return nil, err
	}
	return f, f.write()
}

// close lets go of the folder.
func (f *folder) close() error {
	var errs []error
	for _, c := range []*ca.CA{f.owner, f.maker} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(append(errs, f.lock.Close())...)
}

func (f *folder) path(elem ...string) string {
	return filepath.Join(append([]string{f.dir}, elem...)...)
}

// write writes what others read: devices, operators, and, by the owner's CA itself,
// mosquitto.
func (f *folder) write() error {
	operator, err := f.owner.Operator()
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(operator.PrivateKey)
	if err != nil {
		return err
	}
	if _, err := f.owner.Server(brokerName); err != nil {
		return err
	}
	ownerRoot := certificates(f.owner.Root().Raw)
	for _, file := range []struct {
		folder, name string
		text         []byte
		mode         fs.FileMode
	}{
		{"device", "maker-root.pem", certificates(f.maker.Root().Raw), 0o644},
		{"device", "owner-root.pem", ownerRoot, 0o644},
		{"device", "birthmark.toml", f.deviceConfig(), 0o644},
		{"operator", "ca.pem", ownerRoot, 0o644},
		{"operator", "cert.pem", certificates(operator.Certificate...), 0o644},
		{"operator", "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600},
	} {
		if err := os.MkdirAll(f.path(file.folder), 0o700); err != nil {
			return err
		}
		if err := store.WriteFile(f.path(file.folder, file.name), file.text, file.mode); err != nil {
			return err
		}
	}
	return nil
}

func certificates(ders ...[]byte) (text []byte) {
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return text
}

// deviceConfig is birthmark.toml. Its intervals are those of a demonstration: who
// watches does not want to wait for a minute.
func (f *folder) deviceConfig() []byte {
	return fmt.Appendf(nil, `# A device of this lab. Written anew whenever the lab starts: settings of your own go
# into the environment, BIRTHMARK_SECTION__KEY, such as BIRTHMARK_DEVICE__ID.

[device]
state = "state"

[birth]
url = %q
anchors = "maker-root.pem"
password_file = "password" # birthmark-lab password --ca maker ID

[est]
url = %q
anchors = "owner-root.pem"

[broker]
urls = [%q]
anchors = "owner-root.pem"
reconnect_window = "5s"

[telemetry]
interval = "10s"
`, f.ports.makerURL(), f.ports.ownerURL(), f.ports.brokerURL())
}

// NewPassword makes a one-time password for the device id at the maker's or the
// owner's CA of the lab in the folder dir, in place of one that it may have had. It
// makes no difference whether the lab is up. The cause of the error may be ErrNoLab,
// or a *ca.RefusedError.
func NewPassword(dir, whose, id string) (string, error) {
	if whose != Maker && whose != Owner {
		return "", fmt.Errorf("cannot make a password of %q: the CAs are %s and %s", whose, Maker, Owner)
	}
	folder := filepath.Join(dir, whose)
	if err := exists(folder); err != nil {
		return "", fmt.Errorf("cannot make a password in %s: %w", dir, err)
	}
	return ca.PasswordsIn(folder).New(id)
}

// exists is ErrNoLab for a file or folder that every lab has, and this one has not.
func exists(path string) error {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNoLab
	}
	return err
}
