package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	gotpm "github.com/google/go-tpm/tpm2/transport"

	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

// The sweep spoils one answer of the TPM in a short life of a device, and asks
// afterwards whether the device believed anything that is not true. Which answers
// are spoilt, and how, is drawn from all answers and all ways.
const (
	sweepLives    = 400
	sweepFlips    = 4                      // single bits that may be drawn, per answer
	sweepDeadline = 100 * time.Millisecond // of a command: some answers never come
	sweepPatience = 30 * time.Second       // for one life: longer is a hang
	sweepSeed     = 1                      // of the draw
)

// An answer of the TPM to a command, as the interposer saw it.
type heard struct {
	code              tpm2.TPMCC
	command, response []byte
}

// A believed is what a device took for true in its life; zero where it got an
// error instead.
type believed struct {
	identity rot.Identity
	idevid   crypto.PublicKey
	ldevid   crypto.PublicKey
	blob     rot.Blob
	evidence rot.Evidence
	errs     []error
	false    []string // what was believed and is not even true by itself
}

// live is the life: open, get both keys, sign with them, certify, close. Whatever
// fails is passed over, like a device that goes on.
func live(t *testing.T, c tpm.Config) (b believed) {
	failed := func(err error) bool {
		if err != nil {
			b.errs = append(b.errs, err)
		}
		return err != nil
	}
	r, err := tpm.Open(t.Context(), c)
	if failed(err) {
		return b
	}
	defer func() { failed(r.Close()) }()
	b.identity = r.Identity()
	sign := func(what string, k rot.Key) {
		digest := sha256.Sum256([]byte(what))
		signature, err := k.Sign(rand.Reader, digest[:], crypto.SHA256)
		if !failed(err) && !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest[:], signature) {
			b.false = append(b.false, "a signature of the "+what)
		}
	}
	if k, err := r.IDevID(t.Context()); !failed(err) {
		b.idevid = k.Public()
		sign("IDevID", k)
	}
	k, err := r.Create(t.Context(), rot.P256)
	if failed(err) {
		return b
	}
	b.ldevid, b.blob = k.Public(), k.Blob()
	sign("LDevID", k)
	sign("LDevID", k) // again: after a break it has to load itself
	b.evidence, err = r.Certify(t.Context(), k, []byte("nonce"))
	failed(err)
	return b
}

// record lives once, undisturbed, and returns what went over the bus.
func record(t *testing.T, p *interposer, c tpm.Config) (believed, []heard) {
	t.Helper()
	var life []heard
	end := p.onResponse(func(code tpm2.TPMCC, command, response []byte) []byte {
		life = append(life, heard{code, bytes.Clone(command), bytes.Clone(response)})
		return response
	})
	defer end()
	b := live(t, c)
	if len(b.errs)+len(b.false) > 0 {
		t.Fatalf("an undisturbed life: errors %v, believed %v", b.errs, b.false)
	}
	return b, life
}

// spoilers returns the ways to spoil the n-th answer of a life. One that returns
// nil falls silent.
func spoilers(t *testing.T, n int, life, earlier []heard, random *mathrand.Rand) map[string]func([]byte) []byte {
	answer := life[n].response
	instead := func(b []byte) func([]byte) []byte { return func([]byte) []byte { return b } }
	ways := map[string]func([]byte) []byte{
		"silence":                func([]byte) []byte { return nil },
		"a cut in the middle":    func(b []byte) []byte { return resized(b[:10+(len(b)-10)/2]) },
		"the TPM refuses":        instead(refusal(tpm2.TPMRCHandle)),
		"the TPM has failed":     instead(refusal(tpm2.TPMRCFailure)),
		"the session is unknown": instead(refusal(tpm2.TPMRCReferenceS0)),
		"nothing but success":    instead(refusal(tpm2.TPMRCSuccess)),
		"no session any more": func(b []byte) []byte {
			b = bytes.Clone(b)
			b[0], b[1] = 0x80, 1
			return b
		},
	}
	for range sweepFlips {
		bit := random.IntN(8 * len(answer))
		ways[fmt.Sprintf("bit %d", bit)] = func(b []byte) []byte {
			b = bytes.Clone(b)
			if at := bit / 8; at < len(b) {
				b[at] ^= 1 << (bit % 8)
			}
			return b
		}
	}
	for name, past := range map[string][]heard{"the answer before": life[:n], "the answer in an earlier life": earlier} {
		for _, other := range slices.Backward(past) {
			if other.code == life[n].code {
				ways[name] = instead(other.response)
				break
			}
		}
	}
	switch life[n].code {
	case tpm2.TPMCCReadPublic:
		ways["the attacker's key"] = func([]byte) []byte { return attackersPublic(t, tpm2.ECCSRKTemplate) }
	case tpm2.TPMCCCreate, tpm2.TPMCCCreatePrimary:
		ways["the attacker's key"] = func(b []byte) []byte { return withAttackersPoint(t, b) }
	}
	return ways
}

func refusal(code tpm2.TPMRC) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, uint32(code))
}

// resized makes a response's header say how long it is.
func resized(b []byte) []byte {
	b = bytes.Clone(b)
	binary.BigEndian.PutUint32(b[2:], uint32(len(b)))
	return b
}

// withAttackersPoint puts the attacker's public key into an answer that has one,
// where it stands in the clear.
func withAttackersPoint(t *testing.T, b []byte) []byte {
	b = bytes.Clone(b)
	point := attackersPoint(t)
	// TPMS_ECC_POINT of P-256: two sized coordinates of 32 bytes.
	for at := 10; at+68 <= len(b); at++ {
		if b[at] == 0 && b[at+1] == 32 && b[at+34] == 0 && b[at+35] == 32 {
			copy(b[at+2:], point[1:33])
			copy(b[at+36:], point[33:])
			return b
		}
	}
	return b
}

// A spoilt life is one case of the sweep.
type spoiltLife struct {
	name   string
	config tpm.Config
	bare   bool // the storage root key has to be made
	answer int
	spoil  func([]byte) []byte
}

func TestNoSpoiltAnswerIsBelieved(t *testing.T) {
	s := tpm.Start(t)
	eks := tpm.EKHashes(t, s)
	p := interpose(t, s)
	first := tpm.Config{Address: p.address}
	_, earlier := record(t, p, first) // makes the storage root key, too
	truth, _ := record(t, p, first)
	known := tpm.Config{Address: p.address, Known: truth.identity}
	known.Known.EKCertificate = nil // as it is saved

	random := mathrand.New(mathrand.NewPCG(sweepSeed, sweepSeed))
	var lives []spoiltLife
	for _, l := range []spoiltLife{
		{name: "first boot without storage root key", config: first, bare: true},
		{name: "first boot", config: first},
		{name: "later boot", config: known},
	} {
		if l.bare {
			evictSRK(t, p)
		}
		_, answers := record(t, p, l.config)
		l.config.Deadline = sweepDeadline
		for n := range answers {
			ways := spoilers(t, n, answers, earlier, random)
			for _, way := range slices.Sorted(maps.Keys(ways)) {
				name := fmt.Sprintf("%s, answer %d to %v, %s", l.name, n, answers[n].code, way)
				lives = append(lives, spoiltLife{name, l.config, l.bare, n, ways[way]})
			}
		}
	}
	random.Shuffle(len(lives), func(i, j int) { lives[i], lives[j] = lives[j], lives[i] })

	all, refused, made := len(lives), 0, map[string]believed{}
	lives = lives[:min(all, sweepLives)]
	for _, l := range lives {
		if l.bare {
			evictSRK(t, p)
		}
		b := l.live(t, p)
		if len(b.errs) > 0 {
			refused++
		}
		for _, lie := range append(b.false, lies(b, truth, eks)...) {
			t.Errorf("%s: believed %s", l.name, lie)
		}
		if b.blob != nil {
			made[l.name] = b
		}
	}
	wantLoadable(t, p, known, made)
	t.Logf("%d of %d spoilt lives, %d with an error", len(lives), all, refused)
}

// live lives with the one answer spoilt, and fails the test if that has no end.
func (l spoiltLife) live(t *testing.T, p *interposer) believed {
	t.Helper()
	seen := 0
	return l.lives(t, p.onResponse(func(_ tpm2.TPMCC, _, response []byte) []byte {
		if seen++; seen == l.answer+1 {
			return l.spoil(response)
		}
		return response
	}))
}

// lives lives to the end.
func (l spoiltLife) lives(t *testing.T, end func()) believed {
	t.Helper()
	defer end()
	done := make(chan believed, 1)
	go func() { done <- live(t, l.config) }()
	select {
	case b := <-done:
		return b
	case <-time.After(sweepPatience):
		t.Fatalf("%s: no end after %v", l.name, sweepPatience)
		panic("unreachable")
	}
}

// lies compares what a device believed with the truth about its TPM.
func lies(b, truth believed, eks []string) (lies []string) {
	if b.identity.EK != "" && !slices.Contains(eks, b.identity.EK) {
		lies = append(lies, "an endorsement key that is not the TPM's: "+b.identity.EK)
	}
	if b.identity.SRKName != "" && b.identity.SRKName != truth.identity.SRKName {
		lies = append(lies, "a storage root key that is not the TPM's: "+b.identity.SRKName)
	}
	if b.idevid != nil && !same(b.idevid, truth.idevid) {
		lies = append(lies, "a birth key that is not the TPM's")
	}
	if b.evidence.AK != nil {
		if !bytes.Equal(b.evidence.AK, truth.evidence.AK) {
			lies = append(lies, "an attestation key that is not the TPM's")
		}
		if err := attested(b.evidence, b.ldevid, []byte("nonce")); err != nil {
			lies = append(lies, "evidence that is none: "+err.Error())
		}
	}
	return lies
}

// wantLoadable fails the test unless every key that was made can be loaded and is
// the key that it was said to be.
func wantLoadable(t *testing.T, p *interposer, c tpm.Config, made map[string]believed) {
	t.Helper()
	r := open(t, c)
	defer r.Close()
	for name, b := range made {
		k, err := r.Open(t.Context(), b.blob)
		if err != nil {
			t.Errorf("%s: believed a key that cannot be loaded: %v", name, err)
			continue
		}
		if !same(k.Public(), b.ldevid) {
			t.Errorf("%s: believed a public key that is not the key's", name)
		}
		wantSigns(t, k)
		k.Close()
	}
}

// onBus is the interposer's own way to the TPM.
type onBus struct{ p *interposer }

func (b onBus) Send(command []byte) ([]byte, error) { return b.p.ask(command) }

var _ gotpm.TPM = onBus{}

// evictSRK takes the storage root key from its place. Made again, it is the same.
func evictSRK(t *testing.T, p *interposer) {
	t.Helper()
	const handle = tpm2.TPMHandle(0x81000001)
	public, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(onBus{p})
	if err != nil {
		return // a spoilt life did not get so far
	}
	must[tpm2.EvictControlResponse](t)(tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: tpm2.NamedHandle{Handle: handle, Name: public.Name}, PersistentHandle: handle,
	}.Execute(onBus{p}))
}
