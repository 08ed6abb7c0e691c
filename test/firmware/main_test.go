// Package firmware holds a whole device to what is promised about its updates when
// something goes wrong on the way: with the server, with the bundle while it is read, with
// whoever speaks to the installer, with the disk.
//
// What is tried is what runs on a device: the agent's [update.Updater] with a bundle that
// `rauc bundle` made, fetched by pkg/fota/source over TLS; the installer behind its socket,
// where it has to be as a process of its own; pkg/fota/sdboot on the files of an EFI system
// partition and of two slots. What stands for hardware is the folder, and a boot loader
// that starts what systemd-boot would. Time is a bubble's: a server may stall for a day.
//
// After every fault the same is asserted, by [device.wantUntouched]: nothing is armed, the
// next start is that of the release that runs, and all on the disk but the slot that does
// not run is what it was. And the device is not stuck: without the fault, it takes the
// release.
package firmware

import (
	"fmt"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(playVariable); text != "" {
		if err := play(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if err := os.RemoveAll(works); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
