package installer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"birthmark/pkg/fota/bundle/bundletest"
)

// TestALyingPeer has, for each ask of an install in turn, everything replied that is not
// the truth. Nothing is staged, and arm is refused.
func TestALyingPeer(t *testing.T) {
	d := newDevice(t)
	d.hear = impatient
	d.start()
	good := d.release("1.1.0+sv2")
	// Of the same length, and as well signed: whoever verified one must not install the other.
	other := bundletest.NewRelease("acme-gw", "1.1.0+sv2")
	other.Files["rootfs.img"] = append(bundletest.Noise(150<<10, "other"), bundletest.Text(200<<10)...)
	twin := other.Parts(t, d.pki.Signer).Bytes()
	twin = bytes.Join([][]byte{make([]byte, max(0, len(good)-len(twin))), twin}, nil)

	last, asks := d.offer(len(good), func(_ int, a ask) []byte { return honest(good, a) })
	if last.Written == nil || asks < 5 {
		t.Fatalf("an honest peer was asked %d times and got %+v", asks, last)
	}
	if err := d.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	for lie, reply := range map[string]func(a ask) []byte{
		"another first byte": func(a ask) []byte { b := honest(good, a); b[len(b)-a.Length] ^= 1; return b },
		"another last byte":  func(a ask) []byte { b := honest(good, a); b[len(b)-1] ^= 1; return b },
		"zeros":              func(a ask) []byte { return honest(make([]byte, len(good)), a) },
		"a byte less":        func(a ask) []byte { a.Length--; return honest(good, a) },
		"a byte missing":     func(a ask) []byte { b := honest(good, a); return b[:len(b)-1] },
		"a byte more":        func(a ask) []byte { return append(honest(good, a), 0) },
		"one more than asked": func(a ask) []byte {
			return fmt.Appendf(nil, `{"length":%d}`+"\n%s", a.Length+1, make([]byte, a.Length+1))
		},
		"two replies":         func(a ask) []byte { return append(honest(good, a), honest(good, a)...) },
		"no length":           func(a ask) []byte { return append([]byte("{}\n"), good[:a.Length]...) },
		"a negative length":   func(ask) []byte { return []byte(`{"length":-1}` + "\n") },
		"an enormous length":  func(ask) []byte { return []byte(`{"length":9223372036854775807}` + "\n") },
		"both":                func(a ask) []byte { return fmt.Appendf(nil, `{"length":%d,"error":"x"}`+"\n", a.Length) },
		"an error":            func(ask) []byte { return []byte(`{"error":"the server is gone"}` + "\n") },
		"another request":     func(ask) []byte { return []byte(`{"verb":"arm","version":"1.1.0+sv2"}` + "\n") },
		"junk":                func(a ask) []byte { return append([]byte("\x00\xff junk\n"), honest(good, a)...) },
		"an endless line":     func(ask) []byte { return bytes.Repeat([]byte{' '}, requestLimit+1) },
		"silence":             func(ask) []byte { return nil },
		"a closed connection": func(ask) []byte { return []byte{} },
	} {
		t.Run(lie, func(t *testing.T) {
			for n := range asks {
				last, _ := d.offer(len(good), func(asked int, a ask) []byte {
					if asked == n {
						return reply(a)
					}
					return honest(good, a)
				})
				if last.Error == "" && last.Refused == nil {
					t.Errorf("at ask %d: got %+v, want an error", n, last)
				}
				d.settle()
				d.wantNothing(fmt.Sprint(lie, ", at ask ", n), "1.1.0+sv2")
			}
		})
	}
	t.Run("another bundle from then on", func(t *testing.T) {
		for n := 2; n < asks; n++ { // the first two are for the signature and its length
			if last, _ := d.offer(len(good), func(asked int, a ask) []byte {
				if asked >= n {
					return honest(twin[len(twin)-len(good):], a)
				}
				return honest(good, a)
			}); last.Error == "" && last.Refused == nil {
				t.Errorf("from ask %d: got %+v, want an error", n, last)
			}
			d.wantNothing(fmt.Sprint("another bundle from ask ", n), "1.1.0+sv2")
		}
	})
}

// settle waits until nothing is being done.
func (d *device) settle() {
	d.Helper()
	for end := time.Now().Add(long); ; {
		st, err := d.Status(d.Context())
		if err != nil {
			d.Fatal(err)
		}
		if st.Doing == nil {
			return
		}
		if time.Now().After(end) {
			d.Fatalf("it is still busy with %+v", st.Doing)
		}
	}
}

// TestAPeerSpeaksWhenItIsAsked: while the boot loader is at work, and after the request,
// every byte ends the install.
func TestAPeerSpeaksWhenItIsAsked(t *testing.T) {
	d := newDevice(t)
	good := d.release("1.1.0+sv2")
	speak := make(chan struct{})
	d.loader.set(func() {
		d.loader.during = func(ctx context.Context) {
			speak <- struct{}{}
			<-ctx.Done()
		}
	})
	c := d.dial()
	c.say(fmt.Appendf(nil, `{"verb":"install","size":%d}`+"\n", len(good)))
	go func() {
		<-speak
		_, _ = c.Write([]byte("x"))
	}()
	var last answer
	for last = c.next(); last.Read != nil; last = c.next() {
		c.say(honest(good, *last.Read))
	}
	if want := errSpoke.Error(); last.Error != want {
		t.Errorf("got %+v, want %q", last, want)
	}
	d.wantNothing("a peer that spoke", "1.1.0+sv2")
}

// TestAFileThatIsRewritten changes a file, through another descriptor, after its
// signature was verified.
func TestAFileThatIsRewritten(t *testing.T) {
	good := bundletest.NewRelease("acme-gw", "1.1.0+sv2")
	for what, change := range map[string]func(f *os.File) error{
		"one byte":  func(f *os.File) error { _, err := f.WriteAt([]byte{1}, 100); return err },
		"all bytes": func(f *os.File) error { _, err := f.WriteAt(make([]byte, 100<<10), 0); return err },
		"no bytes":  func(f *os.File) error { return f.Truncate(0) },
	} {
		t.Run(what, func(t *testing.T) {
			d := newDevice(t)
			path := d.file(good.Parts(t, d.pki.Signer).Bytes())
			read, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer read.Close()
			write, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer write.Close()
			d.loader.set(func() {
				d.loader.during = func(context.Context) {
					if err := change(write); err != nil {
						t.Error(err)
					}
				}
			})
			if r, err := d.InstallFile(t.Context(), read, nil); err == nil {
				t.Errorf("%+v was installed", r)
			}
			d.wantNothing("a rewritten file", "1.1.0+sv2")
		})
	}
}

func TestDescriptors(t *testing.T) {
	d := newDevice(t)
	open := func(path string, flags int) int {
		t.Helper()
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	bundle := d.file(d.release("1.1.0+sv2"))
	file := open(bundle, unix.O_RDONLY)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pipe[0]); unix.Close(pipe[1]); unix.Close(socket) })
	install := `{"verb":"install"}`
	for _, c := range []struct {
		what, request string
		fds           []int
		want          string
	}{
		{"a device", install, []int{open("/dev/zero", unix.O_RDONLY)}, "not of a regular file"},
		{"a folder", install, []int{open(t.TempDir(), unix.O_RDONLY)}, "not of a regular file"},
		{"a pipe", install, pipe[:1], "not of a regular file"},
		{"a fifo", install, []int{open(fifo, unix.O_RDWR)}, "not of a regular file"},
		{"a socket", install, []int{socket}, "not of a regular file"},
		{"a link", install, []int{open("/proc/self/exe", unix.O_PATH|unix.O_NOFOLLOW)}, "not of a regular file"},
		{"a path", install, []int{open(bundle, unix.O_PATH)}, "not for reading"},
		{"a file for writing", install, []int{open(bundle, unix.O_WRONLY)}, "not for reading"},
		{"two files", install, []int{file, file}, "2 descriptors came, one is allowed"},
		{"a hundred files", install, make([]int, 100), "too many descriptors came"},
		{"a file and a size", `{"verb":"install","size":4096}`, []int{file}, "a descriptor is for an install that names no size"},
		{"status", `{"verb":"status"}`, []int{file}, "a descriptor is for an install"},
		{"arm", `{"verb":"arm","version":"1.1.0+sv2"}`, []int{file}, "a descriptor is for an install"},
		{"bless", `{"verb":"bless"}`, []int{file}, "a descriptor is for an install"},
		{"no request", `{}`, []int{file}, "a descriptor is for an install"},
	} {
		t.Run(c.what, func(t *testing.T) {
			for i := range c.fds {
				if c.fds[i] == 0 {
					c.fds[i] = file
				}
			}
			talker := d.dial()
			if _, _, err := talker.WriteMsgUnix([]byte(c.request+"\n"), unix.UnixRights(c.fds...), nil); err != nil {
				t.Fatal(err)
			}
			if last := talker.next(); !bytes.Contains([]byte(last.Error), []byte(c.want)) {
				t.Errorf("got %+v, want %q", last, c.want)
			}
			if _, slots, blessed := d.loader.seen(); slots != nil || blessed > 0 {
				t.Error("something was done")
			}
		})
	}
	t.Run("with a reply", func(t *testing.T) {
		c := d.dial()
		c.say([]byte(`{"verb":"install","size":4096}` + "\n"))
		if a := c.next(); a.Read == nil {
			t.Fatalf("got %+v", a)
		}
		if _, _, err := c.WriteMsgUnix(honest(make([]byte, 4096), ask{0, 8}), unix.UnixRights(file), nil); err != nil {
			t.Fatal(err)
		}
		if last := c.next(); last.Error != errSpoke.Error() {
			t.Errorf("got %+v, want %q", last, errSpoke)
		}
	})
	d.start() // waits for the end of what is done
	if n := copies(t, bundle); n != 3 {
		t.Errorf("%d descriptors of the bundle are open, want the 3 of this test", n)
	}
}

// copies is how many descriptors of a file this process has.
func copies(t *testing.T, path string) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == path {
			n++
		}
	}
	return n
}

func TestASlowPeerIsNotWaitedForForEver(t *testing.T) {
	for _, c := range []struct {
		given  int64
		waited time.Duration
		want   time.Duration
	}{
		{0, 0, replyLimit},
		{0, startLimit - time.Minute, time.Minute},
		{0, startLimit, 0},
		{slowest * 30, startLimit, 30 * time.Second},
		{slowest * 30, startLimit + time.Minute, -30 * time.Second},
		{slowest * 3600, startLimit, replyLimit},
		{512 << 20, startLimit + (512<<20)/slowest*time.Second, 0},
		{5 << 40, 0, replyLimit},
	} {
		if got := patience(c.given, c.waited); got != c.want {
			t.Errorf("after %d bytes in %v: %v, want %v", c.given, c.waited, got, c.want)
		}
	}
}
