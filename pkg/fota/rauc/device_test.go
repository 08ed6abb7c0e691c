package rauc

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/fotatest"
)

// blocks is for a device that can do without files in the place of partitions: test/qemu.
var blocks = flag.Bool("blocks", false, "slots are block devices, loop(4), which only root can make")

// A testDevice is a folder that looks like a device's file system, with RAUC on a bus, and
// a boot loader that keeps its books as U-Boot does: an order, and tries that are left.
type testDevice struct {
	testing.TB
	root   string
	starts int
	bus    *exec.Cmd // of this start; nil if nothing has asked yet
}

const (
	slotSize  = 64 << 10 // bytes
	loadTries = 3
)

// The program that RAUC asks: what RAUC's own code for U-Boot does with its environment. The
// file cut lets it fail, see [testDevice.cut].
const bootLoader = `#!/bin/sh -e
cd %[1]s
read -r order <order
without() {
	for name in $order; do [ $name = $1 ] || echo -n " $name"; done
}
good() {
	read -r left <$1 && [ $left != 0 ]
}
cut=
case $1 in
set-*)
	if [ -f cut ]; then
		read -r n after <cut
		n=$((n - 1))
		echo $n $after >cut
		[ $n -gt 0 ] || cut=$after
		[ $n -ge 0 ] || cut=false
		[ "$cut" != false ] || exit 1
	fi ;;
esac
case $1 in
get-primary)
	for name in $order; do
		! good $name || { echo $name; exit; }
	done
	exit 1 ;;
set-primary)
	echo %[2]d >$2
	echo "$2$(without $2)" >order ;;
get-state)
	case " $order " in *" $2 "*) ! good $2 || { echo good; exit; } ;; esac
	echo bad ;;
set-state)
	if [ $3 = good ]; then
		echo %[2]d >$2
	else
		echo 0 >$2
		echo $(without $2) >order
	fi ;;
*) exit 1 ;;
esac
[ -z "$cut" ]
`

// goodSettings are those of a device as package rauc wants it.
const goodSettings = `# the device of a test
[system]
compatible=acme-gw
bootloader=custom
statusfile=%[1]s/var/rauc.status

[handlers]
bootloader-custom-backend=%[1]s/loader/program

[slot.rootfs.0]
device=%[1]s/dev/rootfs-a
type=raw
bootname=A

[slot.appfs.0]
device=%[1]s/dev/appfs-a
type=ext4
parent=rootfs.0

[slot.rootfs.1]
device=%[1]s/dev/rootfs-b
type=raw
bootname=B

[slot.appfs.1]
device=%[1]s/dev/appfs-b
type=ext4
parent=rootfs.1

[slot.spare.0]
device=%[1]s/dev/spare
type=raw
`

// The rules of the bus that are safe.
const goodRules = `<busconfig>
<policy context="default"><deny send_destination="de.pengutronix.rauc"/></policy>
<policy user="root"><allow own="de.pengutronix.rauc"/><allow send_destination="de.pengutronix.rauc"/></policy>
</busconfig>`

func newDevice(tb testing.TB) *testDevice {
	d := &testDevice{TB: tb, root: tb.TempDir()}
	for _, folder := range []string{"etc/rauc", "etc/dbus-1/system.d", "usr/lib", "usr/share/dbus-1/system.d", "var", "dev", "loader", "services",
		"proc/sys/kernel/random"} {
		d.must(os.MkdirAll(d.path(folder), 0o755))
	}
	d.write("etc/rauc/system.conf", fmt.Sprintf(goodSettings, d.root))
	d.write("etc/dbus-1/system.d/local.conf", goodRules)
	d.write("loader/order", "A B\n")
	d.write("loader/A", strconv.Itoa(loadTries)+"\n")
	d.write("loader/B", "0\n")
	d.write("loader/program", fmt.Sprintf(bootLoader, d.path("loader"), loadTries))
	d.must(os.Chmod(d.path("loader/program"), 0o755))
	old := d.Release("1.0.0+sv1")
	for _, class := range []string{"rootfs", "appfs"} {
		for _, name := range []string{"a", "b"} {
			b := bytes.Repeat([]byte{0xff}, slotSize)
			if name == "a" {
				copy(b, old.Contents[class])
			}
			d.must(os.WriteFile(d.path("dev/"+class+"-"+name), b, 0o600))
		}
	}
	d.write("dev/spare", "spare")
	tb.Cleanup(d.stop)
	if *blocks {
		for _, name := range []string{"rootfs-a", "rootfs-b", "appfs-a", "appfs-b"} {
			d.makeBlock(name)
		}
	}
	d.Start()
	return d
}

// makeBlock makes a block device of a file.
func (d *testDevice) makeBlock(name string) {
	d.Helper()
	d.must(os.Rename(d.path("dev/"+name), d.path("var/"+name)))
	out, err := exec.Command("losetup", "--find", "--show", d.path("var/"+name)).Output()
	d.must(err)
	block := strings.TrimSpace(string(out))
	d.Cleanup(func() {
		if err := exec.Command("losetup", "--detach", block).Run(); err != nil {
			d.Error(err)
		}
	})
	d.must(os.Symlink(block, d.path("dev/"+name)))
}

func (d *testDevice) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *testDevice) path(name string) string { return filepath.Join(d.root, name) }

func (d *testDevice) write(name, text string) {
	d.Helper()
	d.must(os.WriteFile(d.path(name), []byte(text), 0o644))
}

func (d *testDevice) read(name string) string {
	d.Helper()
	b, err := os.ReadFile(d.path(name))
	d.must(err)
	return strings.TrimSpace(string(b))
}

// change changes text in a file, which has to be there.
func (d *testDevice) change(name, from, to string) {
	d.Helper()
	b, err := os.ReadFile(d.path(name))
	d.must(err)
	if !strings.Contains(string(b), from) {
		d.Fatalf("%s has no %q", name, from)
	}
	d.write(name, strings.Replace(string(b), from, to, 1))
}

// Installer implements [fotatest.Device].
func (d *testDevice) Installer() fota.Installer { return d.installer() }

func (d *testDevice) installer() Installer {
	d.Helper()
	if d.bus == nil {
		d.startBus()
	}
	return Installer{Root: d.root, Bus: d.path("bus"), State: d.path("var/state")}
}

// Start implements [fotatest.Device].
func (d *testDevice) Start() {
	d.Helper()
	d.stop()
	for name := range strings.FieldsSeq(d.read("loader/order")) {
		left, err := strconv.Atoi(d.read("loader/" + name))
		d.must(err)
		if left == 0 {
			continue
		}
		d.write("loader/"+name, strconv.Itoa(left-1)+"\n")
		d.write("loader/started", name)
		d.starts++
		d.write("proc/sys/kernel/random/boot_id", strconv.Itoa(d.starts)+"\n")
		release, _, _ := strings.Cut(d.read("dev/rootfs-"+strings.ToLower(name)), "\n\n")
		d.write("usr/lib/os-release", release)
		return
	}
	d.Fatal("there is nothing left to start")
}

// startBus starts a bus of this device's own, on which RAUC is started when it is asked.
func (d *testDevice) startBus() {
	d.Helper()
	socket := d.path("bus")
	d.write("services/rauc", fmt.Sprintf("#!/bin/sh\nexport DBUS_STARTER_BUS_TYPE=system DBUS_SYSTEM_BUS_ADDRESS=unix:path=%s\n"+
		"exec rauc --conf=%s --override-boot-slot=%s service 2>>%s\n", socket, d.path("etc/rauc/system.conf"), d.read("loader/started"), d.path("var/rauc.log")))
	d.must(os.Chmod(d.path("services/rauc"), 0o755))
	d.write("services/rauc.service", "[D-BUS Service]\nName="+busName+"\nExec="+d.path("services/rauc")+"\n")
	d.write("bus.conf", `<busconfig><type>session</type><listen>unix:path=`+socket+`</listen><auth>EXTERNAL</auth><servicedir>`+d.path("services")+`</servicedir>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>`)
	d.bus = exec.Command("dbus-daemon", "--config-file="+d.path("bus.conf"), "--nofork", "--print-address=1")
	said, err := d.bus.StdoutPipe()
	d.must(err)
	d.must(d.bus.Start())
	_, err = bufio.NewReader(said).ReadString('\n') // it listens
	d.must(err)
}

// stop ends the bus, and with it RAUC.
func (d *testDevice) stop() {
	if d.bus == nil {
		return
	}
	_ = d.bus.Process.Kill() // what follows says how it ended
	_ = d.bus.Wait()
	d.bus = nil
	_ = os.Remove(d.path("bus"))
}

// Release implements [fotatest.Device].
func (d *testDevice) Release(version string) fotatest.Release {
	r := fotatest.NewRelease(d, "acme-gw", version)
	for _, class := range []string{"rootfs", "appfs"} {
		text := "IMAGE_ID=acme-gw\nIMAGE_VERSION=" + version + "\n\n"
		r.Image(class, append([]byte(text), bytes.Repeat([]byte(class+version), 1000)...))
	}
	return r
}

// devices are the slots of the side that runs, or of the other one.
func (d *testDevice) devices(runs bool) (paths []string) {
	d.Helper()
	name := "a"
	if (d.read("loader/started") == "A") != runs {
		name = "b"
	}
	return []string{d.path("dev/rootfs-" + name), d.path("dev/appfs-" + name)}
}

// Running implements [fotatest.Device].
func (d *testDevice) Running() (all []byte) {
	d.Helper()
	for _, path := range append(d.devices(true), d.path("dev/spare")) {
		b, err := os.ReadFile(path)
		d.must(err)
		all = append(all, b...)
	}
	return all
}

// Holds implements [fotatest.Device].
func (d *testDevice) Holds(r fotatest.Release) bool {
	d.Helper()
	for i, path := range d.devices(false) {
		b, err := os.ReadFile(path)
		d.must(err)
		if !bytes.HasPrefix(b, r.Contents[r.Images[i].Slot]) {
			return false
		}
	}
	return true
}

// Spoil implements [fotatest.Device].
func (d *testDevice) Spoil() {
	d.Helper()
	path := d.devices(false)[1]
	b, err := os.ReadFile(path)
	d.must(err)
	b[1234]++
	d.must(os.WriteFile(path, b, 0o600))
}
