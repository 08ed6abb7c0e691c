package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/test/qemu/machine"
)

// suitePatience is for all promises of an installer, without KVM: each start of RAUC's
// takes half a second there.
const suitePatience = 10 * time.Minute

// TestRAUC: what every installer promises holds with Debian's RAUC on a device, where
// slots are block devices. It is the test of pkg/fota/rauc, with a D-Bus and a boot loader
// of its own: the device's own loader is systemd-boot, which RAUC does not know.
func TestRAUC(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "rauc.test"), "birthmark/pkg/fota/rauc")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	files := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer files.Close()
	d := powerOn(t, machine.Config{})
	d.ready()
	d.do("curl -sS --fail -o /run/rauc.test " + strings.Replace(files.URL, "127.0.0.1", machine.Host, 1) + "/rauc.test && chmod 700 /run/rauc.test")
	start := time.Now()
	said := d.within(suitePatience, "mkdir -p /var/tmp && cd /run && (TMPDIR=/var/tmp ./rauc.test -test.v -test.run '^TestSuite$' -blocks 2>&1; echo exit $?)")
	if !strings.HasSuffix(said, "\nexit 0") || strings.Count(said, "--- PASS: TestSuite/") < 12 {
		t.Errorf("with Debian's RAUC the suite says:\n%s", said)
	}
	t.Logf("the suite took %.1f s", time.Since(start).Seconds())
}
