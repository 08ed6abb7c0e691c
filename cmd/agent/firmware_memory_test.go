package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	bt "birthmark/pkg/fota/bundle/bundletest"
)

const (
	verifyLimit    = 48 << 10         // KiB, with a bundle of any size
	verifyPatience = 60 * time.Second // with half a gigabyte, on a machine that is busy
)

// TestMemoryOfFirmwareVerify lets the real binary verify half a gigabyte, from a file and
// from a server, and what somebody made to fill its memory, and measures it from
// outside.
func TestMemoryOfFirmwareVerify(t *testing.T) {
	dir := t.TempDir()
	maker := bt.NewPKI(t, "P-256", "P-256")
	put := func(name string, b []byte) string {
		write(t, filepath.Join(dir, name), string(b))
		return filepath.Join(dir, name)
	}
	trust := []string{
		"--anchors", put("anchors.pem", inPEM("CERTIFICATE", maker.Root.Cert.Raw)),
		"--signing-cas", put("cas.pem", inPEM("CERTIFICATE", maker.Issuing.Cert.Raw)),
		"--crls", put("crls.pem", inPEM("X509 CRL", bt.CRL(t, maker.Root, nil), bt.CRL(t, maker.Issuing, nil))),
		"--allow-plain",
	}
	binary := build(t, nil)
	measure := func(t *testing.T, want bool, limit int, args ...string) {
		t.Helper()
		patience := verifyPatience
		if !want {
			patience = childPatience
		}
		most, ok := runMeasured(t, patience, binary, append(append([]string{"firmware", "verify"}, args...), trust...)...)
		if ok != want || most > limit {
			t.Errorf("accepted: %t, want %t; %d KiB at most, limit %d", ok, want, most, limit)
		}
		t.Logf("%.1f MiB", float64(most)/1024)
	}

	for _, format := range []string{"verity", "plain"} {
		file := put(format+".raucb", large(t, maker.Signer, format))
		t.Run("half a gigabyte, "+format, func(t *testing.T) { measure(t, true, verifyLimit, file) })
	}
	for comp, args := range map[string][]string{"xz": {"-Xdict-size", "100%"}, "zstd": {"-Xcompression-level", "22"}} {
		files := map[string][]byte{"rootfs.img": append(bt.Noise(1<<20, comp), bt.Text(5<<20)...)}
		release := bt.Release{Compatible: "acme-gw", Version: "1.1.0+sv2", Format: "verity", Files: files, Slots: map[string]string{"rootfs": "rootfs.img"}}
		data := bt.Squashfs(t, files, append([]string{"-b", "1M", "-comp", comp}, args...)...)
		file := put(comp+".raucb", bt.Build(t, data, release.Manifest(), release.Format, bt.Message{By: maker.Signer}).Bytes())
		t.Run("the largest blocks of "+comp, func(t *testing.T) { measure(t, true, verifyLimit, file) })
	}
	server := serveBundles(t, dir)
	t.Run("half a gigabyte from a server", func(t *testing.T) {
		measure(t, true, verifyLimit, server["URL"]+"/verity.raucb", "--tls-anchors", server["SERVER"])
	})

	good := bt.NewRelease("acme-gw", "1.1.0+sv2").Parts(t, maker.Signer)
	signature := func(b []byte) []byte { return bt.Parts{Data: good.Data, Tree: good.Tree, Signature: b}.Bytes() }
	for name, b := range map[string][]byte{
		"elements in each other":  signature(bytes.Repeat([]byte{0x30, 0x80}, 32<<10)),
		"elements without number": signature(bt.TLV(0x30, bytes.Repeat([]byte{0x05, 0x00}, 32_000))),
		"a length of 4 GiB":       signature([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x06, 0x03, 0x2a, 0x03, 0x04}),
		"a large certificate":     signature(bt.Message{Content: []byte("x"), By: wordy(t, maker)}.Sign(t)),
		"groups without number":   manifest(t, maker, "acme-gw", repeat("\n[meta.%d]\na=b\n", 3000)),
		"keys without number":     manifest(t, maker, "acme-gw", repeat("\nkey%d=x", 5000)),
		"a hash tree of 8 EiB":    bt.Build(t, good.Data, "[update]\ncompatible=a\nversion=1.0.0+sv1\n[bundle]\nformat=verity\nverity-size=9223372036854771712\n", "", bt.Message{By: maker.Signer}).Bytes(),
		"random bytes":            bt.Noise(8<<20, "random"),
	} {
		file := put("hostile.raucb", b)
		t.Run(name, func(t *testing.T) { measure(t, false, memoryLimit, file) })
	}

	part := "HTTP/1.1 206 Partial Content\r\nETag: \"x\"\r\nContent-Range: bytes 0-65535/1099511627776\r\n"
	for _, h := range append(hostiles("application/octet-stream"),
		hostile{"a part without end", without(part+"\r\n", "AAAA")},
		hostile{"a part of a terabyte", without(part+"Content-Length: 1099511627776\r\n\r\n", "AAAA")},
		hostile{"a part in chunks without end", without(part+"Transfer-Encoding: chunked\r\n\r\n", "4\r\nAAAA\r\n")}) {
		t.Run("a server: "+h.name, func(t *testing.T) {
			s := answerAlways(t, h)
			measure(t, false, memoryLimit, s.URL+"/release.raucb", "--tls-anchors", server["SERVER"])
		})
	}
}

// answerAlways is a server that has one answer.
func answerAlways(t *testing.T, h hostile) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		h.answer(conn)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(func() {
		s.Listener.Close()
		s.CloseClientConnections()
	})
	return s
}

// large is a bundle with an image of half a gigabyte, most of it holes.
func large(t *testing.T, by *bt.Signer, format string) []byte {
	t.Helper()
	const size, step = 512 << 20, 128 << 10
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "rootfs.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	noise := bt.Noise(size/step*(4<<10), "large")
	for i := range int64(size / step) {
		if _, err := f.WriteAt(noise[i<<12:(i+1)<<12], i*step); err != nil {
			t.Fatal(err)
		}
	}
	h := sha256.New()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("[update]\ncompatible=acme-gw\nversion=1.1.0+sv2\n\n[bundle]\nformat=%s\n\n[image.rootfs]\nsha256=%x\nsize=%d\nfilename=rootfs.img\n", format, h.Sum(nil), size)
	write(t, filepath.Join(dir, "manifest.raucm"), text)
	data := bt.Mksquashfs(t, dir, filepath.Join(t.TempDir(), "squashfs"), "-comp", "zstd", "-Xcompression-level", "1")
	return bt.Build(t, data, text, format, bt.Message{By: by}).Bytes()
}

// manifest is a bundle whose signed manifest has more text at its end.
func manifest(t *testing.T, maker *bt.PKI, compatible, more string) []byte {
	t.Helper()
	release := bt.NewRelease(compatible, "1.1.0+sv2")
	release.More = more
	return release.Parts(t, maker.Signer).Bytes()
}

func repeat(format string, n int) string {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// wordy is a signer with as much certificate as a signature has room for.
func wordy(t *testing.T, maker *bt.PKI) *bt.Signer {
	t.Helper()
	return bt.Issue(t, maker.Issuing, bt.Key(t, "P-256", "wordy"), "Wordy", func(c *x509.Certificate) {
		for i := range 2000 {
			c.DNSNames = append(c.DNSNames, fmt.Sprintf("name-%d.example.com", i))
		}
	})
}
