package doctor

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/config"
	"birthmark/pkg/lifecycle"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

// errHeld is in place of a TPM that only the agent can ask.
var errHeld = errors.New("the running agent has it for itself, and was not asked")

// tpm looks at the TPM, and at the certificates for keys in it.
func (x *examination) tpm(ctx context.Context) []Check {
	root, health, err := x.openTPM(ctx)
	if root != nil && x.root == nil {
		defer root.Close() // it was only read from
	}
	if err != nil {
		c := failed("tpm", err)
		if errors.Is(err, errHeld) {
			c.Result, c.Do = Warn, "ask as root, or as a member of group birthmark-admin"
		}
		return append([]Check{c}, x.certificates(ctx, nil)...)
	}
	return append(condition(health), x.certificates(ctx, root)...)
}

// openTPM is the TPM, and how it is. The root is nil for a TPM that no agent has met.
func (x *examination) openTPM(ctx context.Context) (root rot.Root, h tpm.Health, err error) {
	c := tpm.Config{Address: x.TPM.Address, Known: x.device.Root, Deadline: serverLimit}
	switch {
	case x.root != nil:
		root, err = x.root()
	case x.held && !filepath.IsAbs(c.Address): // a socket has one client at a time
		err = errHeld
	case c.Known.Kind == "":
		h, err = tpm.Examine(ctx, c)
		return nil, h, err
	default:
		var opened *tpm.Root
		if opened, err = tpm.Open(ctx, c); err == nil {
			root = opened
		}
	}
	if err != nil {
		return nil, h, err
	}
	if r, ok := root.(interface {
		Health(context.Context) (tpm.Health, error)
	}); ok {
		h, err = r.Health(ctx)
	}
	return root, h, err
}

// condition is what a TPM said of itself.
func condition(h tpm.Health) []Check {
	found := Check{Name: "tpm", Result: OK, Found: fmt.Sprintf("%s, firmware %s", h.Vendor, h.Firmware)}
	ek := Check{Name: "tpm ek certificate", Result: OK, Found: "the chip maker's certificate is there"}
	if !h.EKCertificate {
		ek.Result, ek.Found = Warn, "there is none: nobody outside can tell that this TPM is a real one"
		ek.Do = "ask the chip's maker for it; the device works without"
	}
	lockout := Check{Name: "tpm lockout", Result: OK, Found: fmt.Sprintf("%d wrong tries, of %d that are allowed", h.Failures, h.MaxFailures)}
	switch {
	case h.Lockout:
		lockout.Result, lockout.Found = Warn, fmt.Sprintf("locked out after %d wrong tries; the agent's keys work, what other programs protect with a password does not", h.Failures)
		lockout.Do = fmt.Sprintf("wait: one try is forgotten every %v; or reset it with the lockout password", h.Recovery)
	case h.Failures > 0:
		lockout.Result, lockout.Do = Warn, "find the program that tries wrong passwords; the agent uses none"
	}
	handles := Check{Name: "tpm handles", Result: OK, Found: fmt.Sprintf("%d objects and %d sessions loaded, %d persistent keys, room for %d more objects", h.Objects, h.Sessions, h.Persistent, h.ObjectsFree)}
	if h.ObjectsFree == 0 {
		handles.Result, handles.Do = Warn, "other programs leave keys in the TPM: let them use /dev/tpmrm0"
	}
	return []Check{found, ek, lockout, handles}
}

// certificates looks at both certificates, and whether their keys are in root, nil if
// that cannot be asked.
func (x *examination) certificates(ctx context.Context, root rot.Root) []Check {
	d := x.device
	idevid := Check{Name: "idevid", Result: OK, Found: "not issued yet"}
	switch {
	case d.Birth.Chain != "":
		idevid = x.certificate(ctx, "idevid", d.Birth.Chain, root, func() (rot.Key, error) { return root.IDevID(ctx) })
	case d.State != lifecycle.Blank:
		idevid.Result, idevid.Found = Warn, "none: this fleet has no birth CA"
		idevid.Do = "know that a device whose everyday certificate is lost has no way home"
	}
	ldevid := Check{Name: "ldevid", Result: OK, Found: "not issued yet"}
	if d.Owner.Chain != "" {
		ldevid = x.certificate(ctx, "ldevid", d.Owner.Chain, root, func() (rot.Key, error) { return root.Open(ctx, rot.Blob(d.Owner.Key)) })
	}
	return []Check{idevid, ldevid}
}

// certificate looks at one certificate, whose key open finds in root.
func (x *examination) certificate(ctx context.Context, name, chain string, root rot.Root, open func() (rot.Key, error)) Check {
	certs, err := config.ParseCertificates([]byte(chain))
	if err != nil {
		return Check{Name: name, Result: Fail, Found: "the saved certificate: " + err.Error(), Do: "remove the state folder to enrol again"}
	}
	c := life(name, certs[0], x.clock.Now())
	if root == nil {
		c.Found += "; its key was not looked for"
		return c
	}
	key, err := open()
	if err != nil {
		return failed(name, fmt.Errorf("the key of %s: %w", certs[0].Subject, err))
	}
	defer key.Close() // it was only looked at
	if !agent.SamePublicKey(certs[0], key) {
		return Check{Name: name, Result: Fail, Found: fmt.Sprintf("the certificate of %s is for another key than the TPM's", certs[0].Subject), Do: "remove the state folder to enrol again"}
	}
	c.Found += "; its key is in the TPM"
	return c
}

// warnAt are the parts of a certificate's life, in percent, after which it is said
// louder that it has to be renewed.
var warnAt = []struct {
	percent float64
	do      string
}{
	{95, "renew it now: soon no server will let the device in"},
	{90, "renew it in these days"},
	{80, "renew it: this version of the agent does not by itself"},
}

// life is how much of a certificate's life is left.
func life(name string, cert *x509.Certificate, now time.Time) Check {
	c := Check{Name: name, Result: OK}
	// In seconds: a Duration ends after 292 years, an IDevID in 9999.
	left, whole := cert.NotAfter.Unix()-now.Unix(), cert.NotAfter.Unix()-cert.NotBefore.Unix()
	used := 100 * (1 - float64(left)/float64(whole))
	c.Found = fmt.Sprintf("%s until %s, %d days", cert.Subject, cert.NotAfter.UTC().Format(time.DateOnly), left/(24*60*60))
	if left <= 0 {
		c.Result, c.Do = Fail, "enrol again"
		c.Found = fmt.Sprintf("%s expired on %s", cert.Subject, cert.NotAfter.UTC().Format(time.DateOnly))
		return c
	}
	for _, w := range warnAt {
		if used >= w.percent {
			c.Result, c.Do = Warn, w.do
			c.Found += fmt.Sprintf(", %.0f %% of its life are over", used)
			break
		}
	}
	return c
}
