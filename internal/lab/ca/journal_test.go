package ca

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// After a power cut the end of the journal may be anything: whatever was cut, all
// that Issue had returned before is there, and the CA goes on.
func TestATornEndIsCutOff(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "issued.jsonl")
	c := mustOpen(t, dir)
	kept := newRequest(t, newKey(t), named("dev-1"))
	first := mustIssue(t, c, kept, Device(0))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	mustIssue(t, c, newRequest(t, newKey(t), named("dev-2")), Device(0))
	c.Close()
	both, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := both[len(whole):]
	ends := map[string]string{
		"nothing":          "",
		"zeros":            strings.Repeat("\x00", 5000),
		"a line of zeros":  strings.Repeat("\x00", 100) + "\n",
		"two damaged ones": "{}\n{\n",
		"no end of line":   strings.Repeat("a", 3*recordLimit),
	}
	for n := 1; n < len(last); n += 37 {
		ends["the first bytes of a record, "+string(last[:n])] = string(last[:n])
	}
	ends["all but the end of the line"] = string(last[:len(last)-1])
	for name, end := range ends {
		if err := os.WriteFile(path, append(whole[:len(whole):len(whole)], end...), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Open(dir, "Test")
		if err != nil {
			t.Errorf("%.60s: %v", name, err)
			continue
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != string(whole) {
			t.Errorf("%.60s: %d bytes left, %v, want the %d of the whole record", name, len(now), err, len(whole))
		}
		if again := mustIssue(t, c, kept, Device(0)); !again.Equal(first) {
			t.Errorf("%.60s: the certificate before it is forgotten", name)
		}
		mustIssue(t, c, newRequest(t, newKey(t), named("dev-3")), Device(0))
		c.Close()
		if n := len(records(t, dir)); n != 2 {
			t.Errorf("%.60s: %d records after one more, want 2", name, n)
		}
	}
}

// What is damaged before something whole is not what a power cut leaves, and
// cutting there would forget certificates.
func TestADamagedMiddleIsNotCutOff(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "issued.jsonl")
	c := mustOpen(t, dir)
	for _, id := range []string{"dev-1", "dev-2"} {
		mustIssue(t, c, newRequest(t, newKey(t), named(id)), Device(0))
	}
	c.Close()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[0] = 0
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, "Test"); err == nil || !strings.Contains(err.Error(), "byte 0") {
		t.Errorf("got %v, want an error that says where", err)
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != string(text) {
		t.Errorf("%d bytes left, %v, want all %d untouched", len(now), err, len(text))
	}
}

// A faultyFile fails as it is told, and counts.
type faultyFile struct {
	journalFile
	short   int   // bytes after which Write fails, once; 0 for never
	syncErr error // of Sync
	cutErr  error // of Truncate
	syncs   int
	onSync  func()
}

func (f *faultyFile) Write(p []byte) (int, error) {
	if f.short > 0 {
		n, err := f.journalFile.Write(p[:f.short])
		f.short = 0
		return n, errors.Join(err, syscall.ENOSPC)
	}
	return f.journalFile.Write(p)
}

func (f *faultyFile) Sync() error {
	f.syncs++
	if f.onSync != nil {
		f.onSync()
	}
	if f.syncErr != nil {
		return f.syncErr
	}
	return f.journalFile.Sync()
}

func (f *faultyFile) Truncate(n int64) error {
	if f.cutErr != nil {
		return f.cutErr
	}
	return f.journalFile.Truncate(n)
}

func withFaults(tb testing.TB, dir string) (*CA, *faultyFile) {
	c := mustOpen(tb, dir)
	f := &faultyFile{journalFile: c.journal.file}
	c.journal.file = f
	return c, f
}

func TestAFullDiskIssuesNothingAndHeals(t *testing.T) {
	dir := t.TempDir()
	c, f := withFaults(t, dir)
	csr := newRequest(t, newKey(t), named("dev-1"))
	f.short = 100
	if cert, err := c.Issue(csr, Device(0)); !errors.Is(err, syscall.ENOSPC) || cert != nil {
		t.Fatalf("got %v, %v, want no room", cert, err)
	}
	cert := mustIssue(t, c, csr, Device(0))
	list := records(t, dir)
	if len(list) != 1 || string(list[0].Certificate) != string(cert.Raw) {
		t.Errorf("%d records, want the one that was issued", len(list))
	}
}

func TestAFailedSyncIssuesNothingUntilOpenedAgain(t *testing.T) {
	for name, fail := range map[string]func(*faultyFile){
		"fsync":    func(f *faultyFile) { f.syncErr = syscall.EIO },
		"truncate": func(f *faultyFile) { f.short, f.cutErr = 1, syscall.EIO },
	} {
		dir := t.TempDir()
		c, f := withFaults(t, dir)
		fail(f)
		csr := newRequest(t, newKey(t), named("dev-1"))
		if cert, err := c.Issue(csr, Device(0)); err == nil || cert != nil {
			t.Fatalf("%s: got %v, %v, want an error", name, cert, err)
		}
		f.syncErr, f.cutErr = nil, nil
		if _, err := c.Issue(csr, Device(0)); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: then got %v, want the first error again", name, err)
		}
		c.Close()
		mustIssue(t, mustOpen(t, dir), csr, Device(0))
	}
}

// What is asked for while the disk is busy goes there together.
func TestManyShareAnFsync(t *testing.T) {
	c, f := withFaults(t, t.TempDir())
	const many = 50
	var requests []*x509.CertificateRequest
	for range many {
		requests = append(requests, newRequest(t, newKey(t), named("dev-1")))
	}
	var all sync.WaitGroup
	f.onSync = func() { // the first one waits until all others have said what they want
		if f.syncs > 1 {
			return
		}
		for _, csr := range requests[1:] {
			all.Go(func() {
				if _, err := c.Issue(csr, Device(0)); err != nil {
					t.Error(err)
				}
			})
		}
		for waiting := 0; waiting < many-1; {
			c.journal.mu.Lock()
			if b := c.journal.next; b != nil {
				waiting = strings.Count(string(b.text), "\n")
			}
			c.journal.mu.Unlock()
		}
	}
	mustIssue(t, c, requests[0], Device(0))
	all.Wait()
	if f.syncs != 2 {
		t.Errorf("%d certificates took %d fsyncs, want 2", many, f.syncs)
	}
}

func TestNothingIsIssuedAfterClose(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Issue(newRequest(t, newKey(t), named("dev-1")), Device(0)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("got %v, want that it is closed", err)
	}
}
