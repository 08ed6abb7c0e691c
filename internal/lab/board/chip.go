package board

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
)

const chipPath = "dev/tpmrm0"

// A chip is the TPM as the kernel shares it, by the TCG's "TSS 2.0 TAB and Resource
// Manager": whoever connects sees no keys and sessions but his own, and leaves none
// behind. It swaps nothing: what all have loaded at once has to fit.
type chip struct {
	mu    sync.Mutex // for a command and its answer
	link  net.Conn
	doors net.Listener
	all   sync.WaitGroup
}

func (b *Board) openChip(ctx context.Context) (*chip, error) {
	network, where, _ := strings.Cut(b.TPM, ":")
	link, err := new(net.Dialer).DialContext(ctx, network, where)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the board's TPM: %w", err)
	}
	_ = os.Remove(b.path(chipPath)) // of a Run that was killed
	l, err := net.Listen("unix", b.path(chipPath))
	if err != nil {
		link.Close()
		return nil, err
	}
	c := &chip{link: link, doors: l}
	c.all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.all.Go(func() { c.serve(conn) })
		}
	})
	return c, nil
}

// close is called when no program runs any more.
func (c *chip) close() {
	c.doors.Close()
	c.all.Wait()
	c.link.Close()
}

// Codes of commands (TPM 2.0 Part 2, 6.5.2).
const (
	createPrimary    = 0x131
	load             = 0x157
	contextLoad      = 0x161
	flushContext     = 0x165
	loadExternal     = 0x167
	startAuthSession = 0x176
	getCapability    = 0x17a
	createLoaded     = 0x191
)

const headSize, packetLimit = 10, 8 << 10 // bytes

// serve takes the commands of one program, which hears no more if one goes wrong.
func (c *chip) serve(conn net.Conn) {
	defer conn.Close()
	own := map[uint32]bool{} // handles
	defer func() {
		for handle := range own {
			flush := binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 14, 0, 0, 0x01, 0x65}, handle)
			_, _ = c.execute(flush) // it may be gone, as a session that has ended
		}
	}()
	for {
		command, err := readPacket(conn)
		if err != nil {
			return
		}
		answer, err := c.execute(command)
		if err != nil {
			return
		}
		if _, err := conn.Write(account(own, command, answer)); err != nil {
			return
		}
	}
}

func (c *chip) execute(command []byte) (answer []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.link.Write(command); err != nil {
		return nil, err
	}
	return readPacket(c.link)
}

// readPacket reads a command, or an answer: a tag, the size of it all, and a code.
func readPacket(r io.Reader) ([]byte, error) {
	head := make([]byte, headSize)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < headSize || size > packetLimit {
		return nil, fmt.Errorf("a packet of the TPM has %d bytes", size)
	}
	packet := append(head, make([]byte, size-headSize)...)
	_, err := io.ReadFull(r, packet[headSize:])
	return packet, err
}

// account keeps account of the handles that a program owns, and returns what it may know
// of an answer.
func account(own map[uint32]bool, command, answer []byte) []byte {
	be := binary.BigEndian
	if be.Uint32(answer[6:]) != 0 { // no success
		return answer
	}
	asked, told := command[headSize:], answer[headSize:]
	switch be.Uint32(command[6:]) {
	case createPrimary, load, contextLoad, loadExternal, startAuthSession, createLoaded:
		if len(told) >= 4 {
			own[be.Uint32(told)] = true
		}
	case flushContext:
		if len(asked) >= 4 {
			delete(own, be.Uint32(asked))
		}
	case getCapability:
		if len(asked) >= 4 {
			return hide(own, command, answer)
		}
	}
	return answer
}

// hide leaves out of a list of handles (TPM_CAP_HANDLES) those that come and go, and are
// of somebody else.
func hide(own map[uint32]bool, command, answer []byte) []byte {
	const handles, listAt = 1, headSize + 1 + 4 + 4
	be := binary.BigEndian
	if be.Uint32(command[headSize:]) != handles || len(answer) < listAt {
		return answer
	}
	kept := answer[:listAt:listAt]
	for list := answer[listAt:]; len(list) >= 4; list = list[4:] {
		handle := be.Uint32(list)
		switch handle >> 24 {
		case 0x02, 0x03, 0x80: // sessions, and objects that are loaded (Part 2, 7.2)
			if !own[handle] {
				continue
			}
		}
		kept = be.AppendUint32(kept, handle)
	}
	be.PutUint32(kept[2:], uint32(len(kept)))
	be.PutUint32(kept[listAt-4:], uint32(len(kept)-listAt)/4)
	return kept
}
