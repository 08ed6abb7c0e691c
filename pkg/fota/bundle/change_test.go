package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"birthmark/pkg/fota"
	bt "birthmark/pkg/fota/bundle/bundletest"
)

// TestReplacedWhileInUse: CVE-2020-25860. Whatever happens to a file between
// verification and use, what is used was verified.
func TestReplacedWhileInUse(t *testing.T) {
	formats(t, func(t *testing.T, d *device, r bt.Release, parts bt.Parts) {
		other := bt.NewRelease("acme-gw", "1.1.0+sv2") // of the same size
		other.Files["rootfs.img"] = bt.Noise(1<<20, "evil")
		other.Format = r.Format
		stranger := bt.NewPKI(t, "P-256", "P-256").Signer
		evil := other.Parts(t, stranger)
		if len(evil.Data) != len(parts.Data) {
			t.Fatalf("payloads of %d and %d bytes, want them to be alike", len(evil.Data), len(parts.Data))
		}
		for _, c := range []struct {
			name, verity string // the code
			replace      func(path string) error
		}{
			{"written to through another descriptor", "block", func(path string) error {
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				_, err = f.WriteAt(evil.Data, 0)
				return err
			}},
			{"truncated and written anew", "tree", func(path string) error {
				return os.WriteFile(path, evil.Bytes(), 0o600)
			}},
		} {
			path := filepath.Join(t.TempDir(), "bundle")
			if err := os.WriteFile(path, parts.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b, err := d.open(f, int64(len(parts.Bytes())))
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Verify(context.Background(), nil); err != nil {
				t.Fatal(err)
			}
			if err := c.replace(path); err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			err = b.CopyImage(context.Background(), &got, b.image(t, "rootfs"), nil)
			code := c.verity
			if r.Format == "plain" {
				code = "changed"
			}
			wantRefusal(t, c.name, err, fota.StagePayload, code)
			if !bytes.HasPrefix(r.Files["rootfs.img"], got.Bytes()) {
				t.Errorf("%s: %d bytes were written that nobody signed", c.name, got.Len())
			}
		}
	})
}

// TestRenamedOver: a descriptor stays with the file that was verified.
func TestRenamedOver(t *testing.T) {
	formats(t, func(t *testing.T, d *device, r bt.Release, parts bt.Parts) {
		dir := t.TempDir()
		path, evil := filepath.Join(dir, "bundle"), filepath.Join(dir, "evil")
		for name, b := range map[string][]byte{path: parts.Bytes(), evil: make([]byte, len(parts.Bytes()))} {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b, err := d.open(f, int64(len(parts.Bytes())))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(evil, path); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := b.CopyImage(context.Background(), &got, b.image(t, "rootfs"), nil); err != nil || !bytes.Equal(got.Bytes(), r.Files["rootfs.img"]) {
			t.Errorf("got %d bytes, %v, want the image that was verified", got.Len(), err)
		}
	})
}

// TestOtherBytesEveryTime: a source that lies at the nth reading, for every n, never
// gets a wrong byte to the writer, and never a success without all right ones.
func TestOtherBytesEveryTime(t *testing.T) {
	formats(t, func(t *testing.T, d *device, r bt.Release, parts bt.Parts) {
		whole := parts.Bytes()
		want := r.Files["rootfs.img"]
		for lie := 1; ; lie++ {
			reading := 0
			s := newSource(bytes.Clone(whole))
			s.before = func(off int64, n int) error {
				if reading++; reading == lie {
					s.b[off+int64(n)/3] ^= 0x40
				}
				return nil
			}
			b, err := d.open(s, int64(len(whole)))
			if err != nil {
				wantRefused(t, err)
				continue
			}
			var got bytes.Buffer
			err = b.CopyImage(context.Background(), &got, b.image(t, "rootfs"), nil)
			if err == nil && !bytes.Equal(got.Bytes(), want) {
				t.Fatalf("a lie at reading %d: success, and the image is another", lie)
			}
			if err != nil {
				wantRefused(t, err)
			}
			if !bytes.HasPrefix(want, got.Bytes()) {
				t.Fatalf("a lie at reading %d: a byte was written that nobody signed", lie)
			}
			if reading < lie {
				break
			}
		}
	})
}

func wantRefused(t *testing.T, err error) {
	t.Helper()
	var no *fota.Refusal
	if !errors.As(err, &no) {
		t.Errorf("got %v, want a refusal", err)
	}
}

// TestTroubleAtEveryReading: a source that fails at the nth reading, for every n, is
// never taken for a bad bundle.
func TestTroubleAtEveryReading(t *testing.T) {
	broken := errors.New("connection reset")
	formats(t, func(t *testing.T, d *device, r bt.Release, parts bt.Parts) {
		whole := parts.Bytes()
		for fail := 1; ; fail++ {
			reading := 0
			s := newSource(whole)
			s.before = func(off int64, n int) error {
				if reading++; reading == fail {
					return broken
				}
				return nil
			}
			b, err := d.open(s, int64(len(whole)))
			if err == nil {
				err = b.Verify(context.Background(), nil)
			}
			if reading < fail {
				if err != nil {
					t.Errorf("nothing failed, and got %v", err)
				}
				break
			}
			wantTrouble(t, fmt.Sprintf("reading %d fails", fail), err)
			if !errors.Is(err, broken) {
				t.Errorf("reading %d fails: got %v, want what was wrong", fail, err)
			}
		}
	})
}
