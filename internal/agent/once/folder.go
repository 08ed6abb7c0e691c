package once

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"birthmark/internal/config"
	"birthmark/pkg/store"
)

// A folder is Options.Out.
type folder string

// pending is a request under way: the files of pending/.
type pending struct {
	Asked []string `json:"asked"`          // the command line that it belongs to
	Bind  bool     `json:"bind,omitempty"` // the CA wants it bound to its connection (RFC 7030, 3.5)

	key  []byte // key.pem
	csr  []byte // DER; request.pem
	cert []byte // cert.pem; nil until it was issued
}

func (f folder) path(name string) string { return filepath.Join(string(f), name) }

// lock makes the folder and keeps every other run out of it: store.ErrLocked when
// there is one. Unlock removes the folder if nothing is in it.
func (f folder) lock() (unlock func(), err error) {
	for {
		if err := os.MkdirAll(string(f), 0o755); err != nil {
			return nil, err
		}
		held, err := store.LockFolder(string(f))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed by its last user
		}
		if err != nil {
			return nil, err
		}
		if f.is(held) {
			return func() {
				_ = os.Remove(string(f)) // unless there is something in it
				held.Close()
			}, nil
		}
		held.Close() // removed, and perhaps made anew, while we waited
	}
}

// is tells whether held is the folder that now has this name.
func (f folder) is(held *os.File) bool {
	was, err := held.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(string(f))
	return err == nil && os.SameFile(was, now)
}

// put writes one result file.
func (f folder) put(name string, text []byte) (string, error) {
	return f.path(name), store.WriteFile(f.path(name), text, 0o644)
}

// start makes pending/ with all of p in it, or not at all.
func (f folder) start(p *pending) error {
	draft := f.path("pending.new")
	if err := errors.Join(os.RemoveAll(draft), os.RemoveAll(f.path("pending.old"))); err != nil {
		return err
	}
	if err := os.Mkdir(draft, 0o700); err != nil {
		return err
	}
	asked, err := json.Marshal(p)
	if err != nil {
		return err
	}
	request := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: p.csr})
	err = store.WriteFiles(draft,
		store.File{Name: "asked.json", Text: asked, Mode: 0o600},
		store.File{Name: "request.pem", Text: request, Mode: 0o600},
		store.File{Name: "key.pem", Text: p.key, Mode: 0o600})
	if err != nil {
		return err
	}
	if err := os.Rename(draft, f.path("pending")); err != nil {
		return err
	}
	return store.SyncFolder(string(f))
}

// pending reads what is under way, nil when nothing is. A request of another
// command line is not touched.
func (f folder) pending(asked []string) (*pending, error) {
	dir := f.path("pending")
	text, err := config.ReadFile(filepath.Join(dir, "asked.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := new(pending)
	if err := json.Unmarshal(text, p); err != nil {
		return nil, fmt.Errorf("%s is damaged, remove it to start anew: %w", dir, err)
	}
	if !slices.Equal(p.Asked, asked) {
		return nil, &UsageError{fmt.Sprintf("%s holds another request: repeat its command line, or remove it", dir)}
	}
	if p.key, err = config.ReadFile(filepath.Join(dir, "key.pem")); err != nil {
		return nil, err
	}
	request, err := config.ReadFile(filepath.Join(dir, "request.pem"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(request)
	if block == nil {
		return nil, fmt.Errorf("%s is damaged, remove it to start anew: no request in request.pem", dir)
	}
	p.csr = block.Bytes
	if p.cert, err = config.ReadFile(filepath.Join(dir, "cert.pem")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return p, nil
}

// issued keeps the certificate beside its key.
func (f folder) issued(p *pending, cert []byte) error {
	p.cert = cert
	return store.WriteFile(f.path("pending/cert.pem"), cert, 0o600)
}

// publish shows the result. It can be cut anywhere: pending/ stays until all of
// it stands.
func (f folder) publish(p *pending) (files []string, err error) {
	chain, err := config.ParseCertificates(p.cert)
	if err != nil {
		return nil, err
	}
	pub, err := x509.MarshalPKIXPublicKey(chain[0].PublicKey)
	if err != nil {
		return nil, err
	}
	result := []store.File{
		{Name: "key.pem", Text: p.key, Mode: 0o600},
		{Name: "pub.pem", Text: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), Mode: 0o644},
		{Name: "cert.pem", Text: p.cert, Mode: 0o644},
	}
	if err := store.WriteFiles(string(f), result...); err != nil {
		return nil, err
	}
	for _, file := range result {
		files = append(files, f.path(file.Name))
	}
	return files, f.done()
}

// done removes pending/, in one step for whoever looks.
func (f folder) done() error {
	old := f.path("pending.old")
	if err := os.Rename(f.path("pending"), old); err != nil {
		return err
	}
	return os.RemoveAll(old)
}

// forget removes what was under way.
func (f folder) forget() {
	// What cannot be removed is harmless: the next run says what it found.
	_ = f.done()
}

// discard removes a request that never got under way.
func (f folder) discard() { _ = os.RemoveAll(f.path("pending.new")) }
