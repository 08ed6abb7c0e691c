package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"birthmark/internal/lab"
	"birthmark/internal/swtpm/swtpmtest"
)

const (
	memoryLimit   = 64 << 10        // KiB: agent-memory-attacked in docs/numbers.md
	childPatience = 3 * time.Second // with a child that a server keeps waiting; its own is a minute
)

// A hostile server's answers are written by hand, below HTTP: all it needs is time
// and what the client lets it send.
type hostile struct {
	name   string
	answer func(w io.Writer) error
}

const (
	certsType = "application/pkcs7-mime"
	attrsType = "application/csrattrs"
	megabyte  = 1 << 20
)

// hostiles are what a server may answer to a request whose good answer is of a type.
func hostiles(mediaType string) []hostile {
	ok := "HTTP/1.1 200 OK\r\nContent-Type: " + mediaType + "\r\n"
	whole := func(body string) func(io.Writer) error {
		return text(fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", ok, len(body), body))
	}
	der := func(b []byte) func(io.Writer) error { return whole(base64.StdEncoding.EncodeToString(b)) }
	return []hostile{
		{"a body without end", without(ok+"\r\n", "AAAA")},
		{"a body of a terabyte", without(ok+"Content-Length: 1099511627776\r\n\r\n", "AAAA")},
		{"chunks without end", without(ok+"Transfer-Encoding: chunked\r\n\r\n", "4\r\nAAAA\r\n")},
		{"a chunk of a terabyte", without(ok+"Transfer-Encoding: chunked\r\n\r\n10000000000\r\n", "AAAA")},
		{"blanks without end", without(ok+"\r\n", "\r\n \t")},
		{"a header without end", without(ok+"X: ", "xxxx")},
		{"header lines without end", without(ok, "X: x\r\n")},
		{"hints without end", without("", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")},
		{"a trailer without end", without(ok+"Transfer-Encoding: chunked\r\n\r\n4\r\nMAA=\r\n0\r\n", "X: x\r\n")},
		{"an error without end", without("HTTP/1.1 403 Forbidden\r\n\r\n", "no! ")},
		{"a line without end", without("HTTP/1.1 200 ", "OK, ")},
		{"a gigabyte in a megabyte", packed(ok)},
		{"redirects without end", text("HTTP/1.1 307 Temporary Redirect\r\nLocation: ?" + strings.Repeat("x", 8<<10) + "\r\nContent-Length: 0\r\n\r\n")},
		{"armour without end", without(ok+"\r\n", "-----BEGIN PKCS7-----\n")},
		{"elements in each other", der(bytes.Repeat([]byte{0x30, 0x80}, 90_000))},
		{"a length of four gigabytes", der([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x06, 0x03, 0x2a, 0x03, 0x04})},
		{"elements without number", der(append([]byte{0x30, 0x83, 0x02, 0xbf, 0x20}, bytes.Repeat([]byte{0x05, 0x00}, 90_000)...))},
		{"a string in pieces", der(append([]byte{0x30, 0x80, 0x24, 0x80}, bytes.Repeat([]byte{0x04, 0x00}, 90_000)...))},
	}
}

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

// without writes head, and then more until nobody listens.
func without(head, more string) func(io.Writer) error {
	block := bytes.Repeat([]byte(more), 64<<10/len(more))
	return func(w io.Writer) error {
		_, err := io.WriteString(w, head)
		for err == nil {
			_, err = w.Write(block)
		}
		return err
	}
}

// packed is a gigabyte of blanks, compressed.
func packed(head string) func(io.Writer) error {
	var member bytes.Buffer
	z := gzip.NewWriter(&member)
	z.Write(bytes.Repeat([]byte(" "), megabyte)) // to memory
	z.Close()
	body := bytes.Repeat(member.Bytes(), 1024) // RFC 1952, 2.2: members follow each other
	return text(fmt.Sprintf("%sContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", head, len(body), body))
}

// TestMemoryUnderHostileServers lets the real binary meet servers that want to fill
// its memory, in every answer that it reads, and measures it from outside.
func TestMemoryUnderHostileServers(t *testing.T) {
	l, err := lab.Up(t.Context(), lab.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	binary := build(t, nil)
	address := swtpmtest.Start(t).Address()
	rootFile := filepath.Join(l.Dir(), "device", "owner-root.pem")
	pin := sha256.Sum256(l.OwnerCA().Root().Raw)
	known := []string{"--anchors", rootFile}
	unknown := []string{"--anchor-sha256", hex.EncodeToString(pin[:])}
	good := 0
	measure := func(t *testing.T, binary, op, url string, trust []string) (most int, ok bool) {
		args := []string{"enroll", "--op", op, "--est-url", url, "--tpm", address, "--out", filepath.Join(t.TempDir(), "out")}
		return runMeasured(t, childPatience, binary, append(args, trust...)...)
	}
	t.Run("a good server", func(t *testing.T) {
		var ok bool
		if good, ok = measure(t, binary, "cacerts", l.OwnerURL(), known); !ok {
			t.Error("it got nothing")
		}
	})

	cases, most := 0, 0
	for _, op := range []struct {
		name      string // of the answer
		command   string
		mediaType string
		trust     []string
	}{
		{"cacerts", "cacerts", certsType, known},
		{"cacerts", "cacerts", certsType, unknown},
		{"csrattrs", "enroll", attrsType, known},
		{"simpleenroll", "enroll", certsType, known},
	} {
		for _, h := range hostiles(op.mediaType) {
			t.Run(op.trust[0]+" "+op.name+" "+h.name, func(t *testing.T) {
				s := startHostile(t, l, op.name, h)
				got, ok := measure(t, binary, op.command, s.URL, op.trust)
				if ok || got > memoryLimit {
					t.Errorf("taken for good: %v; %d KiB at most, limit %d", ok, got, memoryLimit)
				}
				cases, most = cases+1, max(most, got)
			})
		}
	}
	t.Logf("%d cases: %.1f MiB at most, %.1f MiB with a good server", cases, float64(most)/1024, float64(good)/1024)

	// The same binary without one limit: what is measured would be seen.
	t.Run("the twin without a limit on answers", func(t *testing.T) {
		twin := build(t, map[string][2]string{"pkg/enroll/exchange.go": {"answerLimit   = 2 * cms.SizeLimit", "answerLimit   = 2 * cms.SizeLimit << 9"}})
		s := startHostile(t, l, "cacerts", hostiles(certsType)[0])
		if got, _ := measure(t, twin, "cacerts", s.URL, known); got <= memoryLimit {
			t.Errorf("%d KiB at most, want more than %d", got, memoryLimit)
		}
	})
}

// build builds the device binary as it is shipped, but for one text in some files.
func build(t testing.TB, changes map[string][2]string) string {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "birthmark")
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", binary}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for file, change := range changes {
		path, err := filepath.Abs(filepath.Join("../..", file))
		if err != nil {
			t.Fatal(err)
		}
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), change[0]); n != 1 {
			t.Fatalf("%q stands %d times in %s, want once", change[0], n, file)
		}
		overlay.Replace[path] = filepath.Join(dir, filepath.Base(file))
		write(t, overlay.Replace[path], strings.Replace(string(source), change[0], change[1], 1))
	}
	if changes != nil {
		index, err := json.Marshal(overlay)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "overlay.json"), string(index))
		args = append(args, "-overlay", filepath.Join(dir, "overlay.json"))
	}
	cmd := exec.CommandContext(t.Context(), "go", append(args, ".")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startHostile is a server with a certificate of the owner's, which answers to one
// operation with what h has. To csrattrs, that there are none.
func startHostile(t testing.TB, l *lab.Lab, op string, h hostile) *httptest.Server {
	t.Helper()
	cert, err := l.OwnerCA().Server("hostile")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/"+op) {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		io.Copy(io.Discard, r.Body)
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		h.answer(conn)
		conn.(interface{ CloseWrite() error }).CloseWrite()
		io.Copy(io.Discard, conn) // until the client has had enough
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	s.StartTLS()
	t.Cleanup(func() {
		s.Listener.Close()
		s.CloseClientConnections()
	})
	return s
}

// runMeasured runs the binary, and returns the most memory that it had resident, in
// KiB, and whether it was content.
func runMeasured(t *testing.T, patience time.Duration, binary string, args ...string) (most int, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// Once it has ended, nobody knows. What there was the most of only grows, so the
	// last look, a millisecond before at most, is good.
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			most = max(most, peak(cmd.Process.Pid))
		case err := <-ended:
			// 1 and 3 are words about the server; 2 is also what Go's runtime ends with.
			code := cmd.ProcessState.ExitCode()
			if code != 0 && code != 1 && code != 3 && ctx.Err() == nil {
				t.Errorf("it ended with %v:\n%s", err, &stderr)
			}
			if most == 0 {
				t.Error("it was never seen")
			}
			return most, err == nil
		}
	}
}

// peak is VmHWM of a process, in KiB; 0 if it has ended.
func peak(pid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			return n
		}
	}
	return 0
}
