package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"

	"birthmark/internal/sysroot"
)

// systemBus is where D-Bus is on a device, by its specification.
var systemBus = sysroot.Path("/run/dbus/system_bus_socket")

const busLimit = 10 * time.Second // for all that is said there

// restartSystem asks logind to restart the system, which packaging/polkit lets the agent's
// user do.
func restartSystem(ctx context.Context, bus string) error {
	ctx, cancel := context.WithTimeout(ctx, busLimit)
	defer cancel()
	conn, err := dbus.Dial("unix:path="+dbus.EscapeBusAddressValue(bus), dbus.WithContext(ctx),
		dbus.WithAuth(dbus.AuthExternal(strconv.Itoa(os.Getuid()))))
	if err != nil {
		return fmt.Errorf("cannot speak to D-Bus: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })() // who does not answer to Auth is not asked by a context
	if err := conn.Auth(nil); err != nil {
		return fmt.Errorf("cannot speak to D-Bus: %w", err)
	}
	if err := conn.Hello(); err != nil {
		return fmt.Errorf("cannot speak to D-Bus: %w", err)
	}
	// Reboot(b interactive): nobody is there to be asked for a password.
	const interactive = false
	logind := conn.Object("org.freedesktop.login1", "/org/freedesktop/login1")
	if err := logind.CallWithContext(ctx, "org.freedesktop.login1.Manager.Reboot", 0, interactive).Err; err != nil {
		return fmt.Errorf("logind does not restart the system: %w", err)
	}
	return nil
}
