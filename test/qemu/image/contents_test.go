package image

import (
	"bufio"
	"crypto/md5"
	"encoding/hex"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// generated is what Debian's packages make while they are installed, and list nowhere.
// A line that ends with a slash is a folder with all that is in it.
var generated = []string{
	"etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", // base-passwd, sysusers
	"etc/subuid", "etc/subgid", "etc/subuid-", "etc/subgid-", "etc/.pwd.lock",
	"etc/ld.so.cache", "etc/modules", "etc/security/opasswd",
	"etc/alternatives/", "etc/rc0.d/", "etc/rc1.d/", "etc/rc2.d/", "etc/rc3.d/", "etc/rc4.d/", "etc/rc5.d/", "etc/rc6.d/", "etc/rcS.d/",
	"etc/environment", "etc/motd", "etc/nsswitch.conf", "etc/profile", "etc/shells", "etc/localtime", "etc/timezone", "etc/machine-id",
	"etc/default/locale", "etc/pam.d/common-account", "etc/pam.d/common-auth", "etc/pam.d/common-password", "etc/pam.d/common-session",
	"etc/pam.d/common-session-noninteractive",
	"root/.bashrc", "root/.profile",
	"bin", "sbin", "lib", "lib32", "lib64", "libx32", // usrmerge
	"usr/lib32", "usr/lib64", "usr/libx32",
}

// A node is a file, folder or link of a tree.
type node struct {
	fs.FileMode
	link string
	sum  string // MD5, as dpkg has it, of a regular file
}

// nodes are all of a tree, by their path in it.
func nodes(t *testing.T, dir string) map[string]node {
	t.Helper()
	all := map[string]node{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n := node{FileMode: info.Mode()}
		switch n.Type() {
		case fs.ModeSymlink:
			n.link, err = os.Readlink(path)
		case 0:
			var text []byte
			text, err = os.ReadFile(path)
			sum := md5.Sum(text)
			n.sum = hex.EncodeToString(sum[:])
		}
		all[strings.TrimPrefix(path, dir+"/")] = n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// merged is where a path of a package is since /bin is /usr/bin.
func merged(path string) string {
	path = strings.TrimPrefix(strings.TrimPrefix(path, "."), "/")
	for _, old := range []string{"bin/", "sbin/", "lib/", "lib32/", "lib64/", "libx32/"} {
		if strings.HasPrefix(path, old) {
			return "usr/" + path
		}
	}
	return strings.TrimSuffix(path, "/")
}

// dpkg is what the packages of a root file system say of themselves: all paths, and
// the sums of files.
func dpkg(t *testing.T, rootfs string) (paths map[string]bool, sums map[string]string) {
	t.Helper()
	dir := t.TempDir()
	run := exec.CommandContext(t.Context(), "tar", "--extract", "--file="+rootfs, "--directory="+dir, "./var/lib/dpkg")
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	paths, sums = map[string]bool{}, map[string]string{}
	lists, err := filepath.Glob(filepath.Join(dir, "var/lib/dpkg/info/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range append(lists, filepath.Join(dir, "var/lib/dpkg/diversions")) {
		f, err := os.Open(list)
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			switch filepath.Ext(list) {
			case ".list", "": // and where one package puts another's file
				paths[merged(lines.Text())] = true
			case ".md5sums":
				sum, path, _ := strings.Cut(lines.Text(), "  ")
				sums[merged(path)] = sum
			}
		}
		f.Close()
	}
	if len(paths) < 1000 || len(sums) < 500 {
		t.Fatalf("dpkg lists %d paths and %d sums", len(paths), len(sums))
	}
	return paths, sums
}

// plant is a tree of the product, or of a device under test.
func plant(t *testing.T, test bool) map[string]node {
	t.Helper()
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := Kernel(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := makeTree(t.Context(), dir, debianOf(t, test), kernel, Options{Version: "1.0.0+sv1", Epoch: 1_700_000_000, Test: test}); err != nil {
		t.Fatal(err)
	}
	return nodes(t, dir)
}

func debianOf(t *testing.T, test bool) string {
	t.Helper()
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	rootfs := Rootfs
	if test {
		rootfs = TestRootfs
	}
	tar, err := rootfs(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	return tar
}

// laid are the files of one of our folders.
func laid(t *testing.T, folder string) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	if err := fs.WalkDir(ours, folder, func(path string, d fs.DirEntry, err error) error {
		all[strings.TrimPrefix(path, folder+"/")] = true
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// birthmark is what our package lays.
func birthmark(t *testing.T) map[string]bool {
	t.Helper()
	deb, err := Package()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--extract", deb, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	all := map[string]bool{}
	for path := range nodes(t, dir) {
		all[path] = true
	}
	return all
}

// TestTheProductHoldsWhatIsListed, and nothing else: by Debian's packages, by ours, or
// by the recipe; and what Debian's packages hold is as they made it.
func TestTheProductHoldsWhatIsListed(t *testing.T) {
	paths, sums := dpkg(t, debianOf(t, false))
	ours, product := birthmark(t), laid(t, "product")
	for path, n := range plant(t, false) {
		switch {
		case product[path], settled(path), linked(path, n), strings.HasPrefix(path, "usr/lib/modules"):
		case strings.HasPrefix(n.link, "/etc/alternatives/"):
		case ours[path]:
		case paths[path]:
			if sum, ok := sums[path]; ok && n.Type() == 0 && sum != n.sum {
				t.Errorf("/%s is not as Debian's package has it", path)
			}
		case slices.ContainsFunc(generated, func(g string) bool {
			return path == strings.TrimSuffix(g, "/") || strings.HasSuffix(g, "/") && strings.HasPrefix(path, g)
		}):
		default:
			t.Errorf("/%s (%v) is in the image, and nobody lists it", path, n.FileMode)
		}
	}
}

// settled are what settle writes.
func settled(path string) bool {
	return slices.Contains([]string{"etc/machine-id", "etc/hostname", "usr/lib/os-release", "etc/resolv.conf", "etc/mtab",
		"etc/systemd/system/local-fs.target.wants", "etc/systemd/system/local-fs.target.wants/tmp.mount", "etc/systemd/system/tmp.mount", "efi"}, path)
}

// linked is a unit that is masked, or enabled by the recipe, or by a package of a unit
// of its own.
func linked(path string, n node) bool {
	unit, ok := strings.CutPrefix(path, "etc/systemd/system/")
	if !ok {
		return false
	}
	if n.IsDir() {
		return strings.HasSuffix(unit, ".wants") || strings.HasSuffix(unit, ".requires")
	}
	return n.link == "/dev/null" && slices.Contains(masked, unit) ||
		strings.HasPrefix(n.link, "/lib/systemd/system/") || strings.HasPrefix(n.link, "/usr/lib/systemd/system/")
}

// TestTheDeviceUnderTestIsTheProduct with the overlay, which is listed, and no more.
func TestTheDeviceUnderTestIsTheProduct(t *testing.T) {
	product, device := plant(t, false), plant(t, true)
	paths, _ := dpkg(t, debianOf(t, true))
	overlay := laid(t, "overlay")
	for path, n := range device {
		p, ok := product[path]
		switch {
		case ok && p == n, overlay[path]:
		case strings.HasPrefix(path, "usr/lib/modules"):
		case slices.Contains([]string{"etc/birthmark", "etc/birthmark/conf.d", "etc/birthmark/firmware"}, path):
		case labFiles[strings.TrimPrefix(path, "etc/birthmark/")] != "":
		case !ok && (paths[path] || linked(path, n)):
		case !ok && overlay[strings.TrimPrefix(n.link, "/")]: // enabled
		case strings.HasPrefix(path, "etc/alternatives/"), path == "etc/ld.so.cache":
		default:
			t.Errorf("/%s is %v in the device under test, %v in the product", path, n, p)
		}
	}
	for path := range product {
		if _, ok := device[path]; !ok {
			t.Errorf("/%s is in the product only", path)
		}
	}
}

// TestNobodyCanLogIn to the product, or become somebody else in it.
func TestNobodyCanLogIn(t *testing.T) {
	product := plant(t, false)
	for path, n := range product {
		if n.FileMode&(fs.ModeSetuid|fs.ModeSetgid) != 0 && n.Type() == 0 {
			t.Errorf("/%s has %v", path, n.FileMode)
		}
		if n.Perm()&0o002 != 0 && n.Type() != fs.ModeSymlink && n.FileMode&(fs.ModeDevice|fs.ModeSticky) == 0 {
			t.Errorf("everybody may write to /%s: %v", path, n.FileMode)
		}
		if slices.Contains([]string{"agetty", "getty", "sulogin", "login", "sshd", "su", "sudo", "telnetd"}, filepath.Base(path)) && n.Type() == 0 && n.Perm()&0o111 != 0 {
			t.Errorf("/%s is a way to log in", path)
		}
	}
	for _, unit := range masked {
		if n, ok := product["etc/systemd/system/"+unit]; !ok || n.link != "/dev/null" {
			t.Errorf("%s is not masked", unit)
		}
	}
}
