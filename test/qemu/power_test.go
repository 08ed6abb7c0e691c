package main

import (
	"os"
	"testing"

	"birthmark/test/qemu/machine"
)

func TestRecord(t *testing.T) {
	path := "/tmp/bm-writes.log"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	d := powerOn(t, machine.Config{Files: w.birth("device-1"), Log: path})
	d.ready()
	d.do(`cat >/run/marks <<'X'
journalctl -u birthmark-agent -f -n all -o cat | while read -r line; do
	case $line in "state changed "*) printf %-512s "$line" | dd of=/dev/vda bs=512 seek=64 oflag=direct iflag=fullblock;; esac
done
X
setsid sh /run/marks >/run/marks.out 2>&1 &`)
	w.hears("/d/device-1/tele/system")
	t.Log(d.do("sync; cat /run/marks.out; journalctl -u birthmark-agent -o short-monotonic; lsblk; mount | grep vda; sfdisk -d /dev/vda; ls -lR /var/lib/birthmark; find /var | head -50"))
	t.Log(d.identity())
}
