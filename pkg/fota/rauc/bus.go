package rauc

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"
)

// What RAUC is called on D-Bus (de.pengutronix.rauc.Installer in its documentation).
const (
	busName      = "de.pengutronix.rauc"
	busInterface = "de.pengutronix.rauc.Installer"

	// busLimit is for all calls together of what a method does here: environment programs
	// are slow, and whoever waits gives up after two minutes. Reading and writing slots
	// does not count.
	busLimit = 90 * time.Second
)

// A service is RAUC's, on D-Bus.
type service struct {
	conn *dbus.Conn
	rauc dbus.BusObject
	left time.Duration // for calls
}

// dial connects to the bus at a socket, and has RAUC started there. All calls together
// take no longer than limit.
func dial(ctx context.Context, socket string, limit time.Duration) (*service, error) {
	conn, err := dbus.Dial("unix:path="+dbus.EscapeBusAddressValue(socket), dbus.WithContext(ctx),
		dbus.WithAuth(dbus.AuthExternal(strconv.Itoa(os.Getuid()))))
	if err != nil {
		return nil, fmt.Errorf("cannot speak to D-Bus: %w", err)
	}
	s := &service{conn: conn, left: limit}
	err = s.spend(ctx, func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		return s.greet(ctx)
	})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot speak to RAUC on D-Bus: %w", err)
	}
	return s, nil
}

// spend does something in the time that is left for calls.
func (s *service) spend(ctx context.Context, do func(context.Context) error) error {
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, s.left, fmt.Errorf("no more than %v were left for its answer", max(s.left, 0)))
	defer cancel()
	defer func() { s.left -= time.Since(start) }()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err := do(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// greet has RAUC started, and finds out who that is: whoever has the name later is not
// asked, nor somebody who is not root. (In tests RAUC is who we are.)
func (s *service) greet(ctx context.Context) error {
	if err := s.conn.Auth(nil); err != nil {
		return err
	}
	if err := s.conn.Hello(); err != nil {
		return err
	}
	const bus = "org.freedesktop.DBus."
	if err := s.conn.BusObject().CallWithContext(ctx, bus+"StartServiceByName", 0, busName, uint32(0)).Err; err != nil {
		return err
	}
	var owner string
	if err := s.conn.BusObject().CallWithContext(ctx, bus+"GetNameOwner", 0, busName).Store(&owner); err != nil {
		return err
	}
	var uid uint32
	if err := s.conn.BusObject().CallWithContext(ctx, bus+"GetConnectionUnixUser", 0, owner).Store(&uid); err != nil {
		return err
	}
	if uid != 0 && int64(uid) != int64(os.Getuid()) {
		return unsafe("the user %d is RAUC on the bus, want root", uid)
	}
	s.rauc = s.conn.Object(owner, "/")
	return nil
}

func (s *service) close() { s.conn.Close() }

// call calls a method of RAUC's, with what it returns in to.
func (s *service) call(ctx context.Context, method string, args []any, to ...any) error {
	err := s.spend(ctx, func(ctx context.Context) error {
		return s.rauc.CallWithContext(ctx, busInterface+"."+method, 0, args...).Store(to...)
	})
	if err != nil {
		return fmt.Errorf("cannot %s of RAUC: %w", method, err)
	}
	return nil
}

// primary is the name of the slot that starts next.
func (s *service) primary(ctx context.Context) (slot string, err error) {
	err = s.call(ctx, "GetPrimary", nil, &slot)
	return slot, err
}

// mark has the boot loader told that a slot is "active", "good" or "bad".
func (s *service) mark(ctx context.Context, state, slot string) error {
	var marked, said string
	if err := s.call(ctx, "Mark", []any{state, slot}, &marked, &said); err != nil {
		return fmt.Errorf("%s %s: %w", slot, state, err)
	}
	if marked != slot {
		return fmt.Errorf("RAUC was to mark %s as %s, and marked %q: %s", slot, state, marked, said)
	}
	return nil
}

// activate makes a slot the one that starts next, and asks whether it is.
func (s *service) activate(ctx context.Context, slot string) error {
	if err := s.mark(ctx, "active", slot); err != nil {
		return err
	}
	switch next, err := s.primary(ctx); {
	case err != nil:
		return err
	case next != slot:
		return fmt.Errorf("RAUC has made %s the next to start, and says it is %s", slot, next)
	}
	return nil
}

// slots are what RAUC says of its slots, key by key, by their names.
func (s *service) slots(ctx context.Context) (map[string]map[string]string, error) {
	var status []struct {
		Name string
		Keys map[string]dbus.Variant
	}
	if err := s.call(ctx, "GetSlotStatus", nil, &status); err != nil {
		return nil, err
	}
	slots := map[string]map[string]string{}
	for _, slot := range status {
		keys := map[string]string{}
		for key, v := range slot.Keys {
			if text, ok := v.Value().(string); ok {
				keys[key] = text
			}
		}
		slots[slot.Name] = keys
	}
	return slots, nil
}
