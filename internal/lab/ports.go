package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"syscall"

	"birthmark/pkg/store"
)

const (
	host = "127.0.0.1"

	// New ports are taken from below those that Linux gives to outgoing connections
	// (ip_local_port_range): there they are likely to be free at the next start, too.
	portFirst, portLast = 20_000, 32_000
	portTries           = 100

	portsLimit = 4 << 10 // bytes of lab.json
)

// ports are where the lab listens. They are kept in lab.json.
type ports struct {
	Maker  int `json:"maker"`
	Owner  int `json:"owner"`
	Broker int `json:"broker"`
}

func (p ports) makerURL() string  { return "https://" + address(p.Maker) }
func (p ports) ownerURL() string  { return "https://" + address(p.Owner) }
func (p ports) brokerURL() string { return "mqtts://" + address(p.Broker) }

func address(port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// keepPorts reads the ports in a file, or chooses some and writes it.
func keepPorts(ctx context.Context, path string) (ports, error) {
	p, err := readPorts(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	for _, port := range []*int{&p.Maker, &p.Owner, &p.Broker} {
		if *port, err = freePort(ctx, p); err != nil {
			return p, err
		}
	}
	text, err := json.Marshal(p)
	if err != nil {
		return p, err
	}
	return p, store.WriteFile(path, append(text, '\n'), 0o644)
}

func readPorts(path string) (ports, error) {
	f, err := os.Open(path)
	if err != nil {
		return ports{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, portsLimit+1))
	if err != nil {
		return ports{}, err
	}
	p, err := parsePorts(text)
	if err != nil {
		return p, fmt.Errorf("cannot use %s: %w", path, err)
	}
	return p, nil
}

// parsePorts reads lab.json: three ports, no two the same.
func parsePorts(text []byte) (p ports, err error) {
	if len(text) > portsLimit {
		return p, fmt.Errorf("it has more than %d bytes", portsLimit)
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return p, err
	}
	for _, port := range []int{p.Maker, p.Owner, p.Broker} {
		if port < 1 || port > 65535 {
			return p, fmt.Errorf("%d is no port", port)
		}
	}
	if p.Maker == p.Owner || p.Owner == p.Broker || p.Broker == p.Maker {
		return p, errors.New("two ports are the same")
	}
	return p, nil
}

// freePort is a port that nobody listens on, and none of taken.
func freePort(ctx context.Context, taken ports) (int, error) {
	var conf net.ListenConfig
	for range portTries {
		port := portFirst + rand.IntN(portLast-portFirst)
		if port == taken.Maker || port == taken.Owner {
			continue
		}
		l, err := conf.Listen(ctx, "tcp", address(port))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return 0, err
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("no free port found between %d and %d", portFirst, portLast)
}
