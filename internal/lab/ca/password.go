package ca

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

var (
	// ErrPassword: no such device, or not its password.
	ErrPassword = errors.New("unknown device or wrong password")
	// ErrBound: the password is right, and was used for another key.
	ErrBound = errors.New("the password was used for another key")
)

// Passwords are the one-time passwords of the CA in a folder, one a device. They
// can be used by several processes at once, with or without the CA.
//
// A password has at least 128 random bits: it can be neither guessed nor searched
// for, so its hash is a simple one, and nobody counts wrong ones.
type Passwords struct{ dir string }

// PasswordsIn returns the passwords of the CA in the folder dir.
func PasswordsIn(dir string) Passwords { return Passwords{filepath.Join(dir, "passwords")} }

// A password, as it is kept.
type password struct {
	Salt []byte
	Hash []byte // HMAC-SHA-256 of the password, keyed with Salt
	SPKI string `json:",omitempty"` // SHA-256 of the SubjectPublicKeyInfo that it is bound to, hex
}

// New makes a password for a device, in place of the one that it may have had. The
// CA's folder must be there.
func (p Passwords) New(id string) (string, error) {
	text := rand.Text()
	if err := p.make(id, text); err != nil {
		return "", fmt.Errorf("cannot make a password for %.80q: %w", id, err)
	}
	return text, nil
}

func (p Passwords) make(id, text string) error {
	if err := CheckDeviceID(id); err != nil {
		return err
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncFolder(filepath.Dir(p.dir)); err != nil {
		return err
	}
	unlock, err := p.lock()
	if err != nil {
		return err
	}
	defer unlock()
	w := &password{Salt: make([]byte, 16)}
	rand.Read(w.Salt) // never fails
	w.Hash = w.hash(text)
	return p.write(id, w)
}

// Verify returns nil if text is the password of the device, else ErrPassword or
// what kept it from knowing.
func (p Passwords) Verify(id, text string) error {
	_, err := p.read(id, text)
	return err
}

// Bind ties the password to the public key whose SubjectPublicKeyInfo is spki, or
// finds that it did before. When it returns nil, that is on disk. ErrBound if the
// password is tied to another key.
func (p Passwords) Bind(id, text string, spki []byte) error {
	unlock, err := p.lock()
	if errors.Is(err, fs.ErrNotExist) {
		return ErrPassword
	} else if err != nil {
		return err
	}
	defer unlock()
	w, err := p.read(id, text)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(spki)
	switch key := hex.EncodeToString(sum[:]); w.SPKI {
	case key:
		return nil
	case "":
		w.SPKI = key
		return p.write(id, w)
	default:
		return ErrBound
	}
}

// read returns the password of a device if it is text.
func (p Passwords) read(id, text string) (*password, error) {
	if CheckDeviceID(id) != nil { // it is part of a path
		return nil, ErrPassword
	}
	kept, err := os.ReadFile(p.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrPassword
	} else if err != nil {
		return nil, err
	}
	w := new(password)
	if err := json.Unmarshal(kept, w); err != nil {
		return nil, fmt.Errorf("%s: %w", p.path(id), err)
	}
	if !hmac.Equal(w.Hash, w.hash(text)) { // in constant time
		return nil, ErrPassword
	}
	return w, nil
}

func (p Passwords) write(id string, w *password) error {
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return replace(p.path(id), append(text, '\n'), 0o600)
}

func (p Passwords) path(id string) string { return filepath.Join(p.dir, id+".json") }

// lock keeps everybody else, in this process and in others, from writing.
func (p Passwords) lock() (unlock func(), err error) {
	f, err := os.Open(p.dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", p.dir, err)
	}
	return func() { f.Close() }, nil
}

func (w *password) hash(text string) []byte {
	h := hmac.New(sha256.New, w.Salt)
	h.Write([]byte(text))
	return h.Sum(nil)
}
