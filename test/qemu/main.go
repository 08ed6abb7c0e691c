// Qemu makes a whole device and tries it: a real image, a real kernel and systemd, a
// TPM, Secure Boot and a verified root file system, in a virtual machine.
//
//	go run ./test/qemu image    builds the image in out/image (make image)
//	go run ./test/qemu vm       boots it against a lab on this machine (make vm)
//	go test ./test/qemu         the scenarios
//
// The image is of test/qemu/image, the machine of test/qemu/machine. A device gets its
// configuration from the virtual machine (QEMU's fw_cfg, see [image]), since the lab's
// ports, roots and passwords differ from test to test, and the image's /etc is
// verified.
//
// # To add a scenario
//
// Write a test that tells a story, such as TestFirstBoot: newWorld is a maker, an owner
// and a broker; powerOn makes a device of the image, or of a copy of its disk that
// was changed first (copyDisk, image.Put, image.Flip); ready waits until it is up, do
// runs a shell script in it as root, and hears waits for what it tells the broker. A
// further release is made by further, which takes a second, signed and shipped by signed
// and ship, and brought into a device by fetch and install.
//
// A start takes 25 s without KVM: a story that needs nothing new of the machine goes
// into one that runs already. Wait for events, patience at most, and never hold a
// time against a number: the machine may be busy. A test that fails prints the end of
// the console and the agent's journal by itself.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"birthmark/test/qemu/image"
	"birthmark/test/qemu/machine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	flag.Usage = func() { fmt.Fprintln(os.Stderr, "usage: qemu image | vm") }
	flag.Parse()
	var err error
	switch flag.Arg(0) {
	case "image":
		_, err = buildImage(ctx)
	case "vm":
		err = vm(ctx)
	default:
		flag.Usage()
		os.Exit(2)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "qemu:", err)
		os.Exit(1)
	}
}

// buildImage builds the image with the test overlay in out/image, and says what is
// there.
func buildImage(ctx context.Context) (*image.Image, error) {
	top, err := image.Top()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	img, err := build(ctx, filepath.Join(top, "out", "image"), "1.0.0+sv1")
	if err != nil {
		return nil, err
	}
	for _, f := range []struct{ what, path string }{
		{"disk (sparse)", img.Disk}, {"slot", img.Root}, {"release", img.Release}, {"UEFI variables", img.Vars},
	} {
		info, err := os.Stat(f.path)
		if err != nil {
			return nil, err
		}
		fmt.Printf("%-15s %4d MiB  %s\n", f.what, (info.Size()+1<<20-1)>>20, f.path)
	}
	fmt.Printf("root hash       %x\nbuilt in        %.1f s\n", img.Verity.Root, time.Since(start).Seconds())
	return img, nil
}

func build(ctx context.Context, dir, version string) (*image.Image, error) {
	epoch, err := sourceEpoch(ctx)
	if err != nil {
		return nil, err
	}
	return image.Build(ctx, image.Options{Dir: dir, Version: version, Epoch: epoch, Test: true})
}

// sourceEpoch is $SOURCE_DATE_EPOCH, or the time of the commit.
func sourceEpoch(ctx context.Context) (int64, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		out, err := exec.CommandContext(ctx, "git", "log", "-1", "--format=%ct").Output()
		if err != nil {
			return 0, fmt.Errorf("cannot tell the commit's time: %w", err)
		}
		text = string(out)
	}
	return strconv.ParseInt(strings.TrimSpace(text), 10, 64)
}

// vm boots a new device against a new lab, and gives the terminal a root shell in it.
func vm(ctx context.Context) (err error) {
	img, err := buildImage(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bm-vm")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := upLab(ctx, filepath.Join(dir, "lab"), slog.New(slog.NewTextHandler(os.Stdout, nil)),
		func(_, topic string, payload []byte) { fmt.Printf("%s %.200s\n", topic, payload) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	files, err := birth(l, "device-1")
	if err != nil {
		return err
	}
	start := time.Now()
	m, err := machine.Start(ctx, machine.Config{
		Dir: filepath.Join(dir, "vm"), Firmware: image.Firmware, Vars: img.Vars, Disk: img.Disk, Files: files,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Cut()) }()
	fmt.Printf("\nThe device starts; its console is in %s.\n", filepath.Join(dir, "vm", "console"))
	if err := m.Ready(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, m.Console())
	}
	fmt.Printf(`It is up after %.1f s. What you type is run in it, as root, a line at a time. Try:

  birthmark status
  birthmark doctor
  systemctl status birthmark-agent
  journalctl -u birthmark-agent -o short-monotonic
  cat /proc/cmdline
  cat /sys/class/tpm/tpm0/pcr-sha256/7
  systemctl reboot

Ctrl-D or Ctrl-C switches it off, and leaves nothing behind.

`, time.Since(start).Seconds())
	return shell(ctx, m)
}

// shell hands lines of standard input to the device until there are none.
func shell(ctx context.Context, m *machine.Machine) error {
	lines := make(chan string)
	go func() { // ends with the process: a read of a terminal cannot be called off
		defer close(lines)
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			lines <- in.Text()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case line, more := <-lines:
			if !more {
				return nil
			}
			out, err := m.Sh(ctx, line)
			var exit *machine.ExitError
			switch {
			case errors.As(err, &exit):
				fmt.Printf("%s(%d)\n", out, exit.Code)
			case errors.Is(err, machine.ErrRestarted):
				fmt.Println("It has started anew.")
			case err != nil:
				return err
			default:
				fmt.Print(out)
			}
		}
	}
}
