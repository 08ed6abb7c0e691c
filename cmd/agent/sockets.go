package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"

	"birthmark/internal/agent"
	"birthmark/internal/agent/api"
	"birthmark/internal/agent/doctor"
	"birthmark/internal/config"
)

const (
	firstGiven = 3  // sd_listen_fds(3)
	givenLimit = 16 // sockets from the service manager
)

// openDoors opens the doors of a: those that the service manager has made, and the
// rest. A device goes on living without them. conf tells the configuration in force.
func openDoors(a *agent.Agent, conf func() *config.Loaded) *api.Doors {
	given := givenSockets(a.Log(), api.Status, api.Control, api.Telemetry)
	doors, err := api.Open(conf().Config.Doors.Folder, given, api.Agent{
		Status:  func() any { return a.Status() },
		Metrics: a.Metrics,
		Doctor: func(ctx context.Context) any {
			return doctor.Examine(ctx, doctor.Patient{Config: conf(), Root: a.Root, Installer: thisInstaller.Status})
		},
		Tell: func(m api.Message) error {
			err := a.Tell(m.Name, m.Object, m.Durable)
			if errors.Is(err, agent.ErrNoRoom) {
				err = fmt.Errorf("%w: %w", api.ErrNoRoom, err)
			}
			return err
		},
		Install: takeInstall(a),
		Judge:   takeVerdict(a),
	}, a.Log())
	if err != nil {
		a.Log().Error("not all doors are open; the agent runs without", "err", err)
	}
	return doors
}

// givenSockets are the sockets at which the service manager listens for us, by the
// names that their units have in FileDescriptorName=. One that nobody knows is closed.
// Nothing is touched unless all of it is what it should be: a number that is not meant
// for this process may be a file of Go's own.
func givenSockets(log *slog.Logger, known ...string) map[string]net.Listener {
	n, err := given()
	if n == 0 {
		if err != nil {
			log.Warn("sockets from the service manager are not used", "err", err)
		}
		return nil
	}
	byName, err := activation.ListenersWithNames()
	if err != nil {
		log.Warn("sockets from the service manager are not used", "err", err)
	}
	found := map[string]net.Listener{}
	for _, name := range known {
		if all := byName[name]; len(all) > 0 {
			found[name], byName[name] = all[0], all[1:]
		}
	}
	for name, rest := range byName {
		for _, l := range rest {
			log.Warn("a socket from the service manager is not used", "name", name, "path", l.Addr().String())
			l.Close()
		}
	}
	return found
}

// given counts the sockets that $LISTEN_FDS says this process was started with.
func given() (int, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid != strconv.Itoa(os.Getpid()) {
		return 0, nil // none, or meant for another process
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 1 || n > givenLimit {
		return 0, fmt.Errorf("LISTEN_FDS is %q, want 1 to %d", fds, givenLimit)
	}
	for fd := firstGiven; fd < firstGiven+n; fd++ {
		listening, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
		if err != nil {
			return 0, fmt.Errorf("descriptor %d is no socket: %w", fd, err)
		}
		domain, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_DOMAIN)
		if err != nil || listening == 0 || domain != syscall.AF_UNIX {
			return 0, fmt.Errorf("descriptor %d is no Unix socket that listens", fd)
		}
	}
	return n, nil
}
