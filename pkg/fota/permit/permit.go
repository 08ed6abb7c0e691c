// Package permit reads an owner's permit: his word that a device may take a release that is
// older than the one which runs.
//
//	text, err := p.Text()                          // what is signed
//	p, chain, err := permit.Open(signed, trust)    // who signed it, and what it says
//	err = p.Check(compatible, device, time.Now())  // whether it is for this device, today
//
// A permit is a CMS message in PEM ("CMS", RFC 7468, 9) with one line of JSON in it:
//
//	{"permit":"downgrade","compatible":"acme-gw","device":"*","version":"1.0.0+sv2","until":"2026-12-31T00:00:00Z"}
//
// It is for one release and one kind of device; for all of them ("*") or for the one whose
// TPM has a certain endorsement key, by the SHA-256 of its SubjectPublicKeyInfo. It never
// opens the way below the floor ([fota.Policy]).
//
// The line has these members in this order, and no spaces: what could be written in two
// ways could be read in two. `openssl cms -sign -binary -nodetach -outform PEM` signs it as
// well as the lab does.
//
// Who may sign is in files like those for firmware ([bundle.TrustFiles]), but in a folder of
// their own, owner: the maker of a device need not be its owner. The signer's certificate is
// for code signing.
package permit

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
)

// Limit is the most bytes that a permit may have, signed, in PEM.
const Limit = 16 << 10

// Any is the name of every device.
const Any = "*"

// downgrade is the only kind of permit; the name keeps what else an owner signs from
// being one.
const downgrade = "downgrade"

// A Permit is for a device to take an older release.
type Permit struct {
	Kind       string       `json:"permit"`
	Compatible string       `json:"compatible"`
	Device     string       `json:"device"` // Any, or 64 hexadecimal digits
	Version    fota.Version `json:"version"`
	Until      time.Time    `json:"until"` // whole seconds, UTC
}

// New is a permit for devices of a kind.
func New(compatible, device string, v fota.Version, until time.Time) Permit {
	return Permit{downgrade, compatible, device, v, until.UTC().Truncate(time.Second)}
}

// Text is what an owner signs. A permit that would permit nothing is an error.
func (p Permit) Text() ([]byte, error) {
	if err := p.sound(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(p)
	return b.Bytes(), err
}

func (p Permit) sound() error {
	id, err := hex.DecodeString(p.Device)
	switch {
	case p.Kind != downgrade:
		return fmt.Errorf("it is a permit for %.20q, want %q", p.Kind, downgrade)
	case p.Compatible == "":
		return errors.New("it does not say for which devices it is")
	case p.Device != Any && (err != nil || len(id) != 32 || p.Device != strings.ToLower(p.Device)):
		return fmt.Errorf("it is for the device %.20q, want %q or the SHA-256 of an endorsement key, in 64 small hexadecimal digits", p.Device, Any)
	case p.Version == fota.Version{}:
		return errors.New("it does not say for which release it is")
	case p.Until.IsZero() || !p.Until.Equal(p.Until.Truncate(time.Second)) || p.Until.Location() != time.UTC:
		return errors.New("it does not say until when, in whole seconds of UTC")
	}
	return nil
}

// parse reads what Text makes, and nothing else.
func parse(text []byte) (p Permit, err error) {
	if err := json.Unmarshal(text, &p); err != nil {
		return p, fmt.Errorf("it is no permit: %w", err)
	}
	again, err := p.Text()
	if err != nil {
		return p, err
	}
	if !bytes.Equal(again, text) && !bytes.Equal(bytes.TrimSuffix(again, []byte("\n")), text) {
		return p, fmt.Errorf("it is not written as %s", bytes.TrimSpace(again))
	}
	return p, nil
}

// TrustIn are the files in the folders of [bundle.TrustIn] by which permits are believed.
func TrustIn(folders ...string) bundle.TrustFiles {
	var owner []string
	for _, folder := range folders {
		owner = append(owner, filepath.Join(folder, "owner"))
	}
	return bundle.TrustIn(owner...)
}

// Open reads a signed permit; chain is its signer's, up to the anchor. Its errors are a
// *[fota.Refusal], with the codes of [cms.ReadSigned] and [cms.Trust.Verify], or "permit"
// at [fota.StagePolicy].
func Open(signed []byte, trust *cms.Trust) (p Permit, chain []*x509.Certificate, err error) {
	if len(signed) > Limit {
		return p, nil, no("it has more than %d bytes", Limit)
	}
	block, rest := pem.Decode(signed)
	if block == nil || block.Type != "CMS" || len(block.Headers) > 0 || !bytes.HasPrefix(signed, []byte("-----BEGIN CMS-----")) || len(bytes.TrimSpace(rest)) > 0 {
		return p, nil, no("it is not one message in PEM, of the type CMS")
	}
	s, err := cms.ReadSigned(block.Bytes)
	if err != nil {
		return p, nil, refused(fota.StageCMS, err)
	}
	if chain, err = trust.Verify(s); err != nil {
		return p, nil, refused(fota.StageChain, err)
	}
	if p, err = parse(s.Content); err != nil {
		return Permit{}, nil, no("%w", err)
	}
	return p, chain, nil
}

// Check refuses a permit that is not for this device, or not for now.
func (p Permit) Check(compatible, device string, now time.Time) error {
	switch {
	case p.Compatible != compatible:
		return no("it is for %q, this device is %q", p.Compatible, compatible)
	case p.Device != Any && p.Device != device:
		return no("it is for the device %s, this one is %q", p.Device, device)
	case !now.Before(p.Until):
		return no("it was good until %s", p.Until.Format(time.RFC3339))
	}
	return nil
}

func no(format string, args ...any) error {
	return fota.Refuse(fota.StagePolicy, "permit", "the permit is not taken: "+format, args...)
}

// refused says at which stage package cms has said no.
func refused(stage fota.Stage, err error) error {
	var r *cms.Refusal
	if !errors.As(err, &r) {
		return err
	}
	return fota.Refuse(stage, r.Code, "the permit is not taken: %w", err)
}
