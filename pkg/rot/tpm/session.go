package tpm

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	gotpm "github.com/google/go-tpm/tpm2/transport"
)

const (
	nonceSize = 16  // bytes, TPM 2.0 Part 3, 11.1: at least 16
	aesBits   = 128 // of parameter encryption; every TPM has AES-128
)

// A session is an HMAC session whose key nobody on the bus can compute, because
// it grew from a secret that was encrypted to a key of the TPM (TPM 2.0 Part 1,
// 19.6). It authorizes commands, detects that one was changed on the way, and
// hides their first parameter.
//
// Why not go-tpm's: HMACSession fixes for the whole session which direction is
// encrypted, though commands differ in what they allow; its HMAC and Policy
// sessions stay in the TPM when a step of theirs fails; and up to v0.9.8 it takes
// an authorization value to end at its first zero byte.
type session struct {
	handle tpm2.TPMHandle
	key    []byte // sessionKey
	caller []byte // nonceCaller, new for every command
	tpm    []byte // nonceTPM, new in every answer
}

// startSession begins a session that is salted to key. Whoever holds the private
// part of public can follow all of it: the caller says why that is the TPM.
func (r *Root) startSession(key tpm2.TPMHandle, public *tpm2.TPMTPublic) (*session, error) {
	encapsulation, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return nil, err
	}
	salt, encrypted, err := tpm2.CreateEncryptedSalt(rand.Reader, encapsulation)
	if err != nil {
		return nil, err
	}
	s := &session{caller: make([]byte, nonceSize)}
	rand.Read(s.caller)
	answer, err := execute(r, tpm2.StartAuthSession{
		TPMKey:        key,
		Bind:          tpm2.TPMRHNull,
		NonceCaller:   tpm2.TPM2BNonce{Buffer: s.caller},
		EncryptedSalt: tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
		SessionType:   tpm2.TPMSEHMAC,
		Symmetric: tpm2.TPMTSymDef{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(aesBits)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		},
		AuthHash: tpm2.TPMAlgSHA256,
	})
	if err != nil {
		return nil, err
	}
	s.handle, s.tpm = answer.SessionHandle, answer.NonceTPM.Buffer
	s.key = tpm2.KDFa(crypto.SHA256, salt, "ATH", s.tpm, s.caller, 8*sha256.Size)
	return s, nil
}

// A direction says which first parameters of a command and of its answer are
// encrypted. Only those that are sized (TPM2B) can be.
type direction byte

const (
	plain direction = 0
	in    direction = 1 << 5 // TPMA_SESSION decrypt: seen from the TPM
	out   direction = 1 << 6 // TPMA_SESSION encrypt
)

const continueSession = 1 // TPMA_SESSION continueSession: it stays for the next command

// authorize uses the session for one command, for an object with the given
// authorization value.
func (s *session) authorize(auth string, d direction) tpm2.Session {
	return &authorization{s, bytes.TrimRight([]byte(auth), "\x00"), d}
}

// An authorization is one use of a session, as go-tpm wants it.
type authorization struct {
	s    *session
	auth []byte // without trailing zero bytes, Part 1, 19.6.5, note 2
	direction
}

var _ tpm2.Session = (*authorization)(nil)

func (a *authorization) Init(gotpm.TPM) error           { return nil }
func (a *authorization) CleanupFailure(gotpm.TPM) error { return nil }
func (a *authorization) NonceTPM() tpm2.TPM2BNonce      { return tpm2.TPM2BNonce{Buffer: a.s.tpm} }
func (a *authorization) Handle() tpm2.TPMHandle         { return a.s.handle }
func (a *authorization) IsDecryption() bool             { return a.direction&in != 0 }
func (a *authorization) IsEncryption() bool             { return a.direction&out != 0 }

func (a *authorization) NewNonceCaller() error {
	a.s.caller = make([]byte, nonceSize)
	_, err := rand.Read(a.s.caller)
	return err
}

// Authorize makes the authorization area of a command, Part 1, 19.6.5.
func (a *authorization) Authorize(cc tpm2.TPMCC, params, addNonces []byte, names []tpm2.TPM2BName, _ int) (*tpm2.TPMSAuthCommand, error) {
	h := sha256.New()
	binary.Write(h, binary.BigEndian, uint32(cc))
	for _, name := range names {
		h.Write(name.Buffer)
	}
	h.Write(params)
	return &tpm2.TPMSAuthCommand{
		Handle: a.s.handle,
		Nonce:  tpm2.TPM2BNonce{Buffer: a.s.caller},
		Attributes: tpm2.TPMASession{
			ContinueSession: true,
			Decrypt:         a.IsDecryption(),
			Encrypt:         a.IsEncryption(),
		},
		Authorization: tpm2.TPM2BData{Buffer: a.mac(h.Sum(nil), a.s.caller, a.s.tpm, addNonces)},
	}, nil
}

// Validate checks that an answer came from the TPM as it is. The session cannot
// be used after an error: its nonces may be the attacker's.
func (a *authorization) Validate(rc tpm2.TPMRC, cc tpm2.TPMCC, params []byte, _ []tpm2.TPM2BName, _ int, auth *tpm2.TPMSAuthResponse) error {
	h := sha256.New()
	binary.Write(h, binary.BigEndian, uint32(rc))
	binary.Write(h, binary.BigEndian, uint32(cc))
	h.Write(params)
	a.s.tpm = auth.Nonce.Buffer
	// The MAC below covers the attributes that were sent: an answer with others
	// does not pass.
	if !hmac.Equal(a.mac(h.Sum(nil), a.s.tpm, a.s.caller, nil), auth.Authorization.Buffer) {
		return errors.New("an answer that was changed on its way, or is not the TPM's")
	}
	return nil
}

// mac is the HMAC over a command or an answer, Part 1, 19.6.5 and 19.6.8.
func (a *authorization) mac(hash, newer, older, addNonces []byte) []byte {
	m := hmac.New(sha256.New, a.secret())
	m.Write(hash)
	m.Write(newer)
	m.Write(older)
	m.Write(addNonces)
	m.Write([]byte{byte(a.direction) | continueSession})
	return m.Sum(nil)
}

// secret is the key of the HMAC and, as sessionValue, of the encryption: Part 1,
// 19.6.5 and 21.2.
func (a *authorization) secret() []byte { return append(bytes.Clone(a.s.key), a.auth...) }

func (a *authorization) Encrypt(param []byte) error {
	if !a.IsDecryption() {
		return nil
	}
	return a.cfb(param, a.s.caller, a.s.tpm, true)
}

func (a *authorization) Decrypt(param []byte) error {
	if !a.IsEncryption() {
		return nil
	}
	return a.cfb(param, a.s.tpm, a.s.caller, false)
}

// cfb runs AES-CFB over data in place, Part 1, 21.3. Key and IV are used once, so
// the mode's lack of authentication is covered by the HMAC. (The standard
// library's CFB is deprecated, for who can choose; a TPM cannot.)
func (a *authorization) cfb(data, newer, older []byte, encrypt bool) error {
	const keyBytes = aesBits / 8
	keyIV := tpm2.KDFa(crypto.SHA256, a.secret(), "CFB", newer, older, aesBits+8*aes.BlockSize)
	block, err := aes.NewCipher(keyIV[:keyBytes])
	if err != nil {
		return fmt.Errorf("cannot encrypt for the TPM: %w", err)
	}
	var stream [aes.BlockSize]byte
	feedback := keyIV[keyBytes:]
	for len(data) > 0 {
		block.Encrypt(stream[:], feedback)
		n := min(len(data), aes.BlockSize)
		before := bytes.Clone(data[:n])
		for i := range n {
			data[i] ^= stream[i]
		}
		if feedback = before; encrypt {
			feedback = data[:n]
		}
		data = data[n:]
	}
	return nil
}
