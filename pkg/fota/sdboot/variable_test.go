package sdboot

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestVariablesAreReadStrictly(t *testing.T) {
	d := newDevice(t)
	v := d.vars()
	for name, c := range map[string]struct {
		data []byte
		want string // "" for an error
	}{
		"text":                      {text("birthmark_1.0.0+3.efi"), "birthmark_1.0.0+3.efi"},
		"text beyond ASCII":         {text("größe \U0001f512"), "größe \U0001f512"},
		"no NUL":                    {text("abc")[:6], ""},
		"half a unit":               {text("abc")[:7], ""},
		"nothing":                   {nil, ""},
		"a NUL within":              {text("a\x00b"), ""},
		"two NULs":                  {text("ab\x00"), ""},
		"half a character":          {[]byte{0x3d, 0xd8, 0, 0}, ""},
		"more bytes than the limit": {text(strings.Repeat("a", textLimit/2)), ""},
	} {
		d.set(entryDefault, c.data)
		if got, err := v.text(entryDefault); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, c.want)
		}
	}
	for _, short := range [][]byte{nil, {7, 0, 0}} {
		d.must(os.WriteFile(v.path(entryDefault), short, 0o600))
		if got, err := v.text(entryDefault); err == nil {
			t.Errorf("a variable of %d bytes was read as %q", len(short), got)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add(encodeText("birthmark_1.0.0+3.efi"))
	f.Add([]byte{0x3d, 0xd8, 0, 0})
	f.Add([]byte{0xfd, 0xff, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if text, ok := decodeText(b); ok && !bytes.Equal(encodeText(text), b) {
			t.Errorf("%x was read as %q, which is %x", b, text, encodeText(text))
		}
	})
}

// What UEFI's text is, by its bytes.
func TestText(t *testing.T) {
	if got, want := encodeText("aé\U0001f512"), []byte{'a', 0, 0xe9, 0, 0x3d, 0xd8, 0x12, 0xdd, 0, 0}; !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestSecureBootState(t *testing.T) {
	d := newDevice(t)
	for name, c := range map[string]struct {
		data []byte
		on   bool
		bad  bool
	}{
		"on": {[]byte{1}, true, false}, "off": {[]byte{0}, false, false}, "neither": {[]byte{2}, false, true},
		"empty": {nil, false, true}, "long": {[]byte{0, 0}, false, true},
	} {
		d.set(secureBootState, c.data)
		if s, err := d.loader().Status(); s.SecureBoot != c.on || (err != nil) != c.bad {
			t.Errorf("%s: Secure Boot %v, %v; want %v, an error: %v", name, s.SecureBoot, err, c.on, c.bad)
		}
	}
	d.must(os.Remove(d.vars().path(secureBootState)))
	if s, err := d.loader().Status(); s.SecureBoot || err != nil {
		t.Errorf("firmware that does not know it: Secure Boot %v, %v; want off", s.SecureBoot, err)
	}
}

func TestVariableIsWrittenOnceAndRemoved(t *testing.T) {
	d := newDevice(t)
	v := d.vars()
	path := v.path(entryOneShot)
	want := append([]byte{7, 0, 0, 0}, text("a.efi")...)
	d.must(v.setText(entryOneShot, "a.efi"))
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, want) {
		t.Errorf("the variable is %q, %v, want %q", b, err, want)
	}
	// It is not written again: that would fail here, for anybody.
	d.must(os.Chmod(path, 0o400))
	restore := immutableFile(t, path)
	d.must(v.setText(entryOneShot, "a.efi"))
	restore()
	d.must(v.setText(entryOneShot, "b.efi"))
	d.must(v.remove(entryOneShot))
	d.must(v.remove(entryOneShot))
	if _, err := v.text(entryOneShot); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a variable that was removed: %v", err)
	}
	if err := v.setText(entryOneShot, strings.Repeat("a", textLimit/2)); err == nil {
		t.Error("text beyond the limit was written")
	}
}

// A variable that its file system protects can be changed and removed all the same.
func TestProtectedVariable(t *testing.T) {
	d := newDevice(t)
	v := d.vars()
	d.must(v.setText(entryOneShot, "a.efi"))
	defer immutableFile(t, v.path(entryOneShot))()
	if err := v.setText(entryOneShot, "b.efi"); err != nil {
		t.Errorf("cannot change it: %v", err)
	}
	if got, err := v.text(entryOneShot); got != "b.efi" {
		t.Errorf("it holds %q, %v, want the new text", got, err)
	}
	defer immutableFile(t, v.path(entryOneShot))()
	if err := v.remove(entryOneShot); err != nil {
		t.Errorf("cannot remove it: %v", err)
	}
}

// immutableFile protects a file as efivarfs does, where the file system and our rights
// allow it, and returns what ends that.
func immutableFile(t *testing.T, path string) (restore func()) {
	t.Helper()
	flag := func(on bool) {
		f, err := os.Open(path)
		if err != nil {
			return
		}
		defer f.Close()
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			t.Logf("the file system has no flags: %v", err)
			return
		}
		flags &^= immutable
		if on {
			flags |= immutable
		}
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags); err != nil {
			t.Logf("the file cannot be protected: %v", err)
		}
	}
	flag(true)
	return func() { flag(false) }
}
