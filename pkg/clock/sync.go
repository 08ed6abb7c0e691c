package clock

import (
	"os"

	"golang.org/x/sys/unix"
)

// timesyncd touches this file whenever it has set the clock from the network;
// the folder is empty after each boot.
const timesyncFile = "/run/systemd/timesync/synchronized"

// synchronised asks the kernel whether its clock is, adjtimex(2) without changing
// anything. A sandbox that forbids system calls about the clock (systemd's
// ProtectClock= does) answers EPERM; then the word of systemd-timesyncd counts.
func synchronised() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		_, err := os.Stat(timesyncFile)
		return err == nil
	}
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
}
