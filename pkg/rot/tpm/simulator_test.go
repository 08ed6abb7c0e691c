//go:build simulator

package tpm_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-tpm-tools/simulator"

	"birthmark/pkg/rot"
	"birthmark/pkg/rot/rottest"
	"birthmark/pkg/rot/tpm"
)

// A chassis has room for one simulated TPM: Microsoft's reference implementation,
// inside this process. Its seed says which chip is in.
type chassis struct {
	address string

	mu   sync.Mutex
	seed int64
	tpm  io.ReadWriteCloser // nil when there is none
}

// The reference implementation keeps the promises, too: another one than swtpm's
// libtpms, and one whose maker gave it no EK certificate.
func TestSimulatorKeepsThePromisesOfARoot(t *testing.T) {
	c := newChassis(t)
	insert := func(seed int64) func(*testing.T) rot.Root {
		return func(t *testing.T) rot.Root {
			c.insert(t, seed)
			return open(t, tpm.Config{Address: c.address})
		}
	}
	rottest.Run(t, insert(1), insert(2))
}

// newChassis serves whatever TPM is in it on a socket, to one client at a time.
func newChassis(t *testing.T) *chassis {
	t.Helper()
	dir, err := os.MkdirTemp("", "bm-sim") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	c := &chassis{address: "unix:" + filepath.Join(dir, "sock")}
	listener, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			for c.serve(client) == nil {
			}
			client.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
		c.mu.Lock()
		defer c.mu.Unlock()
		c.removeLocked(t)
		os.RemoveAll(dir)
	})
	return c
}

// insert exchanges the TPM for that with the seed. Nobody may be connected.
func (c *chassis) insert(t *testing.T, seed int64) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tpm != nil && c.seed == seed {
		return
	}
	c.removeLocked(t)
	s, err := simulator.GetWithFixedSeedInsecure(seed)
	if err != nil {
		t.Fatal(err)
	}
	c.tpm, c.seed = s, seed
}

// removeLocked takes the TPM out; the simulator says if something is left loaded in it.
func (c *chassis) removeLocked(t *testing.T) {
	t.Helper()
	if c.tpm == nil {
		return
	}
	if err := c.tpm.Close(); err != nil {
		t.Error(err)
	}
	c.tpm = nil
}

// serve passes one command to the TPM, and its answer back.
func (c *chassis) serve(client net.Conn) error {
	command, err := message(client)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tpm == nil {
		return errors.New("no TPM is in")
	}
	if _, err := c.tpm.Write(command); err != nil {
		return err
	}
	response := make([]byte, 4096)
	n, err := c.tpm.Read(response)
	if err != nil {
		return err
	}
	_, err = client.Write(response[:n])
	return err
}
