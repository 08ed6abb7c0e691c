// Package firmware is `birthmark firmware verify`: what this device, or another one,
// would say of a bundle, without installing it.
//
//	report, err := firmware.Verify(ctx, "https://example.com/release.raucb", firmware.Options{})
//
// It needs neither a TPM nor the agent, nor its configuration, and stands on the code
// that installs: pkg/fota/source reads, pkg/fota/bundle and pkg/cms verify, [fota.Policy]
// decides. What a device knows of itself, and what was not given here, is not asked; the
// report says what that is. Everything else is: a bundle is accepted when every byte of
// it was read and is the one that was signed.
//
// # Whom it believes
//
// Three files say that: root certificates, the CAs whose leaves may sign, and the CRLs of
// both. Where one is not named, it is the device's own, of [Folders], read as whoever
// installs reads it ([bundle.TrustFiles]). Who has none of one of them believes nobody:
// every bundle is refused.
//
// # Errors
//
//	*fota.Refusal      the bundle is refused; there is a report, too
//	*config.Error      the question makes no sense, or names files that cannot be used
//	*UnavailableError  the bundle could not be read: nothing is known of it
//
// [Hint] has the next step for some of them.
package firmware

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"birthmark/internal/config"
	"birthmark/pkg/clock"
	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
	"birthmark/pkg/fota/source"
)

// Options are the flags of the command.
type Options struct {
	Anchors    string        // file; "": the device's
	SigningCAs string        // file; "": the device's
	CRLs       string        // file; "": the device's, if it has one
	CRLGrace   time.Duration // how long after its end a CRL is still good
	EKU        string        // purpose that the signer's certificate must name, one of [Purposes]; "": codeSigning

	// Policy is what is known about the device. What is zero in it is not asked, but for
	// the permissions.
	Policy fota.Policy

	TLSAnchors string // file that the server at an address is verified with; "": the system's roots
	ClientCert string // file, leaf first, with which the server is shown who asks; "": nobody says
	ClientKey  string // file

	// Progress, if there is one, is told how far a step is.
	Progress func(step string, done, total int64)
}

// An UnavailableError says that the bundle could not be read, and nothing about it.
type UnavailableError struct{ Err error }

func (e *UnavailableError) Error() string { return e.Err.Error() }
func (e *UnavailableError) Unwrap() error { return e.Err }

// Verify verifies the bundle in a file, or at an https address. There is a report if
// the bundle was accepted (then err is nil), and if it was refused.
func Verify(ctx context.Context, from string, o Options) (*Report, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	c := clock.Host()
	r := &Report{NotChecked: o.notChecked()}
	trust, err := o.trust(c, Folders)
	if err == nil {
		err = o.read(ctx, c, from, trust, r)
	}
	var refusal *fota.Refusal
	var mistake *config.Error
	switch {
	case err == nil:
		r.Accepted = true
	case errors.As(err, &refusal):
		r.Stage, r.Code, r.Reason = refusal.Stage, refusal.Code, refusal.Err.Error()
	case errors.As(err, &mistake):
		return nil, err
	default:
		return nil, &UnavailableError{err}
	}
	return r, err
}

// read reads a bundle from where it lies, and judges it.
func (o *Options) read(ctx context.Context, c *clock.Clock, from string, trust *cms.Trust, r *Report) error {
	src, err := o.open(ctx, c, from)
	if err != nil {
		return err
	}
	defer src.Close()
	counted := &counter{r: src}
	r.Size = src.Size()
	err = o.judge(ctx, counted, trust, r)
	r.BytesRead = counted.n.Load()
	if remote, ok := src.(*source.Remote); ok {
		r.BytesRead = remote.Counters().Fetched
	}
	return err
}

func (o *Options) check() error {
	for name, size := range o.Policy.Slots {
		if size <= 0 {
			return &config.Error{Msg: fmt.Sprintf("--slot %s=%d: want a number of bytes", name, size)}
		}
	}
	switch {
	case o.EKU != "" && Purposes[o.EKU] == 0:
		return &config.Error{Msg: fmt.Sprintf("--eku %q: want codeSigning or emailProtection", o.EKU)}
	case o.CRLGrace < 0:
		return &config.Error{Msg: "--crl-grace cannot be negative"}
	case (o.ClientCert == "") != (o.ClientKey == ""):
		return &config.Error{Msg: "--client-cert and --client-key go together"}
	}
	return nil
}

// judge takes a bundle through all stages, and notes in r what was proved.
func (o *Options) judge(ctx context.Context, src io.ReaderAt, trust *cms.Trust, r *Report) error {
	progress := func(step string) func(done, total int64) {
		if o.Progress == nil {
			return nil
		}
		return func(done, total int64) { o.Progress(step, done, total) }
	}
	var b *bundle.Bundle
	var err error
	if o.Policy.AllowPlain {
		b, err = bundle.OpenPlain(ctx, src, r.Size, trust, progress("reading"))
	} else {
		b, err = bundle.Open(src, r.Size, trust)
	}
	if err != nil {
		return err
	}
	r.Signer, r.Manifest = signerOf(b.Chain), manifestOf(b.Manifest)
	if err := o.policy(b.Manifest).Check(b.Manifest); err != nil {
		return err
	}
	return b.Verify(ctx, progress("verifying"))
}

// policy is the device's, which is content with whatever it was not asked about.
func (o *Options) policy(m *fota.Manifest) fota.Policy {
	p := o.Policy
	if p.Compatible == "" {
		p.Compatible = m.Compatible
	}
	if p.Slots == nil {
		p.Slots = map[string]int64{}
		for _, image := range m.Images {
			p.Slots[image.Slot] = image.Size
		}
	}
	return p
}

// notChecked is what a device knows of itself and was not asked about, by the names of
// the flags.
func (o *Options) notChecked() []string {
	names := []string{}
	for _, c := range []struct {
		name    string
		missing bool
	}{
		{"compatible", o.Policy.Compatible == ""},
		{"running-version", o.Policy.Running == fota.Version{}},
		{"floor", o.Policy.Floor == 0},
		{"slot", o.Policy.Slots == nil},
	} {
		if c.missing {
			names = append(names, c.name)
		}
	}
	return names
}

// Purposes are what a signer's certificate may be for: extended key usages, by their
// names in RFC 5280, 4.2.1.12. The second is what RAUC asks for when it is not told.
var Purposes = map[string]x509.ExtKeyUsage{
	"codeSigning":     x509.ExtKeyUsageCodeSigning,
	"emailProtection": x509.ExtKeyUsageEmailProtection,
}
