package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

// An interposer sits on the bus between the processor and a TPM, where it can
// read and change everything.
type interposer struct {
	address string // where the victim finds it

	mu       sync.Mutex
	seen     *bytes.Buffer                                          // what went over the bus; nil does not keep it
	instead  func(code tpm2.TPMCC, command []byte) []byte           // of asking the TPM; nil asks it
	change   func(code tpm2.TPMCC, command, response []byte) []byte // of the response
	hangUp   bool                                                   // after this response
	upstream net.Conn
}

// interpose starts one that changes nothing yet.
func interpose(t *testing.T, s *swtpm.TPM) *interposer {
	t.Helper()
	dir, err := os.MkdirTemp("", "bm-bus") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	p := &interposer{address: "unix:" + filepath.Join(dir, "sock")}
	p.connect(t, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			victim, err := listener.Accept()
			if err != nil {
				return
			}
			for p.relay(victim) == nil {
			}
			victim.Close()
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		p.upstream.Close()
		<-done
	})
	return p
}

// connect goes on with another TPM, without the victim's noticing.
func (p *interposer) connect(t *testing.T, s *swtpm.TPM) {
	t.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(s.Address(), "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.upstream = c
}

// onResponse lets f change what the victim gets, and returns a function that ends
// it.
func (p *interposer) onResponse(f func(code tpm2.TPMCC, command, response []byte) []byte) (end func()) {
	set := func(f func(tpm2.TPMCC, []byte, []byte) []byte) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.change = f
	}
	set(f)
	return func() { set(nil) }
}

// onCommand lets f answer in place of the TPM, and returns a function that ends it.
func (p *interposer) onCommand(f func(code tpm2.TPMCC, command []byte) []byte) (end func()) {
	set := func(f func(tpm2.TPMCC, []byte) []byte) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.instead = f
	}
	set(f)
	return func() { set(nil) }
}

func (p *interposer) relay(victim net.Conn) error {
	command, err := message(victim)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	code := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
	var response []byte
	if p.instead != nil {
		response = p.instead(code, command)
	}
	if response == nil && !p.hangUp {
		if response, err = p.askLocked(command); err != nil {
			return err
		}
	}
	if p.seen != nil {
		p.seen.Write(command)
		p.seen.Write(response)
	}
	if p.change != nil {
		response = p.change(code, command, response)
	}
	_, err = victim.Write(response)
	if p.hangUp {
		p.hangUp = false
		return io.EOF
	}
	return err
}

// ask sends a command of the interposer's own to the TPM.
func (p *interposer) ask(command []byte) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.askLocked(command)
}

func (p *interposer) askLocked(command []byte) ([]byte, error) {
	if _, err := p.upstream.Write(command); err != nil {
		return nil, err
	}
	return message(p.upstream)
}

// message reads a command or a response.
func message(r io.Reader) ([]byte, error) {
	header := make([]byte, 10)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(header[2:])-10)
	_, err := io.ReadFull(r, body)
	return append(header, body...), err
}

func TestTheBusIsNotBelieved(t *testing.T) {
	s := tpm.Start(t)
	p := interpose(t, s)
	p.seen = new(bytes.Buffer)
	r := open(t, tpm.Config{Address: p.address})
	k := create(t, r, rot.P256)
	digest := sha256.Sum256([]byte("a message that nobody should see"))
	for name, spoil := range map[string]func([]byte){
		"a bit of the signature": func(b []byte) { b[30] ^= 1 },
		"a bit of the HMAC":      func(b []byte) { b[len(b)-1] ^= 1 },
		"the last byte":          func(b []byte) { b[5]-- },
	} {
		end := p.onResponse(func(code tpm2.TPMCC, _, response []byte) []byte {
			if code == tpm2.TPMCCSign {
				spoil(response)
				return response[:binary.BigEndian.Uint32(response[2:])]
			}
			return response
		})
		if _, err := k.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, rot.ErrUnavailable) {
			t.Errorf("%s: got %v, want rot.ErrUnavailable", name, err)
		}
		end()
		wantSigns(t, k) // over a new connection
	}
	if bytes.Contains(p.seen.Bytes(), digest[:]) {
		t.Error("the digest went over the bus in the clear")
	}
}

// An attacker's key in place of the storage root key would get the secret of every
// later session.
func TestAnExchangedStorageKeyIsRefused(t *testing.T) {
	s := tpm.Start(t)
	p := interpose(t, s)
	r := open(t, tpm.Config{Address: p.address})
	known := r.Identity()
	r.Close()
	defer p.onResponse(func(code tpm2.TPMCC, command, response []byte) []byte {
		if code == tpm2.TPMCCReadPublic && bytes.Equal(command[10:], []byte{0x81, 0, 0, 1}) {
			return attackersPublic(t, tpm2.ECCSRKTemplate)
		}
		return response
	})()
	if r, err := tpm.Open(t.Context(), tpm.Config{Address: p.address}); err == nil {
		t.Errorf("first boot: opened with storage root key %s", r.Identity().SRKName)
		r.Close()
	}
	if r, err := tpm.Open(t.Context(), tpm.Config{Address: p.address, Known: known}); err == nil {
		t.Error("later boot: opened")
		r.Close()
	}
}

// Likewise an attacker's key in place of the factory's: certificates would be
// issued to the attacker.
func TestAFactoryKeyThatOnlyTheBusKnowsIsRefused(t *testing.T) {
	p := interpose(t, tpm.Start(t))
	r := open(t, tpm.Config{Address: p.address})
	end := p.onResponse(func(code tpm2.TPMCC, command, response []byte) []byte {
		if code == tpm2.TPMCCReadPublic && bytes.Equal(command[10:], []byte{0x81, 2, 0, 0}) {
			return attackersPublic(t, signingTemplate())
		}
		return response
	})
	if k, err := r.IDevID(t.Context()); !errors.Is(err, rot.ErrUnavailable) {
		t.Errorf("got %v, %v, want rot.ErrUnavailable", k, err)
	}
	end()
	wantSigns(t, idevid(t, r))
	r.Close()
}

// attackersPublic answers TPM2_ReadPublic with a P-256 key of which the attacker has
// the private part, Name and all.
func attackersPublic(t *testing.T, public tpm2.TPMTPublic) []byte {
	point := attackersPoint(t)
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		t.Error(err)
	}
	b := []byte{0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0}
	b = append(b, tpm2.Marshal(tpm2.New2B(public))...)
	b = append(b, tpm2.Marshal(*name)...) // name
	b = append(b, tpm2.Marshal(*name)...) // qualified name
	binary.BigEndian.PutUint32(b[2:], uint32(len(b)))
	return b
}

// attackersPoint is the public key of an attacker: 4, X, Y.
func attackersPoint(t *testing.T) []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Error(err)
		return nil
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Error(err)
	}
	return point
}

// A TPM that was reset while the connection held knows nothing of keys and session.
func TestLoadsAgainAfterAReset(t *testing.T) {
	s := swtpmtest.Start(t)
	p := interpose(t, s)
	r := open(t, tpm.Config{Address: p.address})
	k := create(t, r, rot.P256)
	s.Kill()
	restarted, err := swtpm.Start(t.Context(), s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer restarted.Kill()
	p.connect(t, restarted)
	if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, rot.ErrUnavailable) {
		t.Errorf("got %v, want rot.ErrUnavailable", err)
	}
	wantSigns(t, k)
}

// A chip's maker, or who serves it, can give it a new endorsement seed: then the
// birth key is gone, though the storage root key is the same.
func TestANewEndorsementSeedIsNoticed(t *testing.T) {
	s := tpm.Start(t)
	p := interpose(t, s)
	r := open(t, tpm.Config{Address: p.address})
	k := idevid(t, r)
	changeEPS := []byte{0x80, 2, 0, 0, 0, 27, 0, 0, 0x01, 0x24, 0x40, 0, 0, 0x0c, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0}
	response, err := p.ask(changeEPS)
	if err != nil || !bytes.Equal(response[6:10], make([]byte, 4)) {
		t.Fatalf("TPM2_ChangeEPS: got %x, %v, want success", response, err)
	}
	for range 2 { // the first one only notices that the key is not loaded
		if _, err = k.Sign(nil, make([]byte, 32), crypto.SHA256); errors.Is(err, rot.ErrReplaced) {
			break
		}
	}
	if !errors.Is(err, rot.ErrReplaced) {
		t.Errorf("got %v, want rot.ErrReplaced", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// What the TPM answers becomes what a caller decides by.
func TestAnswersHaveAMeaning(t *testing.T) {
	s := tpm.Start(t)
	p := interpose(t, s)
	k := create(t, open(t, tpm.Config{Address: p.address}), rot.P256)
	for code, want := range map[tpm2.TPMRC]error{
		tpm2.TPMRCLockout:       rot.ErrLockout,
		tpm2.TPMRCObjectMemory:  rot.ErrBusy,
		tpm2.TPMRCSessionMemory: rot.ErrBusy,
		tpm2.TPMRCContextGap:    rot.ErrBusy,
		tpm2.TPMRCFailure:       rot.ErrFailure,
		tpm2.TPMRCReferenceS0:   rot.ErrUnavailable,
		tpm2.TPMRCNVUnavailable: rot.ErrUnavailable,
	} {
		end := p.onResponse(func(cc tpm2.TPMCC, _, response []byte) []byte {
			if cc == tpm2.TPMCCSign {
				response = binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, uint32(code))
			}
			return response
		})
		if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, want) || !errors.Is(err, code) {
			t.Errorf("%v: got %v, want %v", code, err, want)
		}
		end()
	}
}

// A key that the TPM would not unload takes up one of its few slots, and nobody
// knows of it any more.
func TestKeysThatWereNotUnloadedDoNotFillTheTPM(t *testing.T) {
	p := interpose(t, tpm.Start(t))
	r := open(t, tpm.Config{Address: p.address})
	k := idevid(t, r)
	for range 3 { // as many as there are slots
		for range 2 {
			create(t, r, rot.P256)
		}
		end := p.onCommand(func(code tpm2.TPMCC, _ []byte) []byte {
			if code == tpm2.TPMCCFlushContext {
				return refusal(tpm2.TPMRCLocality)
			}
			return nil
		})
		if _, err := r.Create(t.Context(), rot.P256); !errors.Is(err, rot.ErrBusy) {
			t.Errorf("got %v, want rot.ErrBusy", err)
		}
		end()
	}
	wantSigns(t, k)
	r.Close()
}
