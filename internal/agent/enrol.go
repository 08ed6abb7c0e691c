package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"birthmark/internal/config"
	"birthmark/pkg/csr"
	"birthmark/pkg/enroll"
	"birthmark/pkg/lifecycle"
	"birthmark/pkg/rot"
)

// birth ends with the IDevID's certificate from the maker's CA.
func (a *Agent) birth(ctx context.Context) error {
	if a.cfg.Birth.Mode == config.BirthNone {
		a.log.Warn("this fleet has no birth CA: a device whose everyday certificate is lost has no way home")
		return a.move(lifecycle.Birthed, func(d *Device) { d.Asking = Asking{} }) // of a maker that was configured before
	}
	key, err := a.root.IDevID(ctx)
	if err != nil {
		return err
	}
	defer key.Close()
	a.log.Info("IDevID is in the root of trust", "protected", protection(key))
	ca, err := EST(a.cfg.Birth.Server(), enroll.Config{Username: a.store.Get().ID, Clock: a.clock})
	if err != nil {
		return err
	}
	issued, err := a.ask(ctx, effectBirth, ca, func(csr.Attrs) (rot.Key, error) { return key, nil })
	if err != nil {
		return err
	}
	return a.accept(lifecycle.Birthed, issued, func(d *Device) { d.Birth.Chain = string(EncodeChain(issued.Chain)) })
}

// own ends with the first LDevID and its certificate from the owner's CA. The
// request travels under the IDevID, or under a password where there is none.
func (a *Agent) own(ctx context.Context) error {
	if err := a.frozen(); err != nil {
		return err
	}
	d := a.store.Get()
	conf := enroll.Config{Clock: a.clock, Username: a.cfg.EST.Username}
	if d.Birth.Chain != "" {
		idevid, err := a.root.IDevID(ctx)
		if err != nil {
			return err
		}
		defer idevid.Close()
		if conf.Certificate, err = credential(d.Birth.Chain, idevid); err != nil {
			return err
		}
	} else if conf.Username == "" {
		conf.Username = d.ID
	}
	ca, err := EST(a.cfg.EST.Server(), conf)
	if err != nil {
		return err
	}
	var key rot.Key
	defer func() {
		if key != nil {
			key.Close()
		}
	}()
	issued, err := a.ask(ctx, effectOwner, ca, func(wish csr.Attrs) (_ rot.Key, err error) {
		key, err = a.ldevid(ctx, wish)
		return key, err
	})
	if err != nil {
		return err
	}
	return a.accept(lifecycle.Issued, issued, func(d *Device) {
		d.Owner = Owner{
			Key: d.Asking.Key, Chain: string(EncodeChain(issued.Chain)),
			Generation: d.Owner.Generation + 1, Assurance: assurance(d.Root),
		}
	})
}

// ldevid opens the key of the request that is under way, or makes one. A key that the
// CA refused is asked for again as long as its kind is wanted; otherwise a new one is
// made, and the old one forgotten in the write that remembers the new one's request.
func (a *Agent) ldevid(ctx context.Context, wish csr.Attrs) (key rot.Key, err error) {
	algorithm := rot.Algorithm(a.cfg.TPM.Algorithm)
	if wished, ok := wish.Algorithm(); ok {
		algorithm = rot.Algorithm(wished)
	}
	if saved := a.store.Get().Asking; saved.Key != "" {
		key, err := a.root.Open(ctx, rot.Blob(saved.Key))
		if err != nil || saved.CSR != nil || kindOf(key) == algorithm {
			return key, err
		}
		a.log.Info("another kind of key is wanted than the one that was refused", "was", string(kindOf(key)), "algorithm", string(algorithm))
		key.Close()
	}
	err = a.do(effectKey, func() (err error) {
		key, err = a.root.Create(ctx, algorithm)
		return err
	})
	if err == nil {
		a.log.Info("LDevID made in the root of trust", "algorithm", string(algorithm), "protected", protection(key))
	}
	return key, err
}

// kindOf is what kind of key it is.
func kindOf(key rot.Key) rot.Algorithm {
	switch pub := key.Public().(type) {
	case *ecdsa.PublicKey:
		return rot.Algorithm(pub.Curve.Params().Name)
	case *rsa.PublicKey:
		return rot.Algorithm(fmt.Sprintf("RSA-%d", pub.N.BitLen()))
	}
	return ""
}

// protection is what a key's root of trust says that protects it.
func protection(key rot.Key) string {
	if d, ok := key.(rot.Describer); ok {
		return strings.Join(d.Describe(), " ")
	}
	return ""
}

// ask gets a certificate for the key that makeKey gives. Key and request are
// saved before they are sent, and stay until an answer is: a CA that answered
// "later" (RFC 7030, 4.2.3), or whose answer was lost, gets the same again.
func (a *Agent) ask(ctx context.Context, effect string, ca *enroll.Client, makeKey func(csr.Attrs) (rot.Key, error)) (issued enroll.Issued, err error) {
	asking := a.store.Get().Asking
	var wish csr.Attrs
	if asking.CSR == nil {
		err = a.do(effectAttrs, func() (err error) {
			wish, err = Wishes(ctx, ca)
			return err
		})
		if err != nil {
			return issued, err
		}
	}
	key, err := makeKey(wish)
	if err != nil {
		return issued, err
	}
	if asking.CSR == nil {
		if asking, err = a.remember(key, wish); err != nil {
			return issued, err
		}
	}
	// The clock may be another one than when this was saved: never wait longer
	// than a CA can ask for.
	if wait := min(asking.RetryAt.Sub(a.clock.Now()), pendingLimit); wait > 0 {
		a.log.Info("the CA asked to wait", "for", wait.Round(time.Second))
		if !a.pause(ctx, wait) {
			return issued, ctx.Err()
		}
	}
	err = a.do(effect, func() (err error) {
		issued, err = ca.Enroll(ctx, Request(asking.CSR, key, asking.Bind))
		return err
	})
	return issued, a.answered(err)
}

// remember builds the request for key and saves both.
func (a *Agent) remember(key rot.Key, wish csr.Attrs) (Asking, error) {
	subject, err := csr.CommonName(a.store.Get().ID)
	if err != nil {
		return Asking{}, err
	}
	req := csr.Request{Subject: subject}
	wish.Apply(&req)
	der, err := csr.Build(req, key)
	if err != nil {
		return Asking{}, err
	}
	asking := Asking{Key: string(key.Blob()), CSR: der, Bind: wish.ChallengePassword, Since: a.clock.Now()}
	return asking, a.store.Update(func(d *Device) error { d.Asking = asking; return nil })
}

// answered notes what an error of the CA means for the request under way.
func (a *Agent) answered(err error) error {
	var pending *enroll.PendingError
	var refused *enroll.RefusedError
	switch {
	case errors.As(err, &pending):
		a.record("pending", slog.Duration("retry_after", pending.RetryAfter))
		return errors.Join(err, a.store.Update(func(d *Device) error {
			d.Asking.RetryAt = a.clock.Now().Add(min(pending.RetryAfter, pendingLimit))
			d.Asking.Tries++
			return nil
		}))
	case errors.As(err, &refused):
		// The next request says the same of the same key, but anew: what the CA
		// wishes to see may have changed.
		a.record("refused", slog.Int("status", refused.Status), slog.String("reason", refused.Reason))
		return errors.Join(err, a.store.Update(func(d *Device) error {
			d.Asking = Asking{Key: d.Asking.Key, Since: d.Asking.Since, Tries: d.Asking.Tries + 1}
			return nil
		}))
	}
	return err
}

// accept saves what was issued and ends the state on ev.
func (a *Agent) accept(ev lifecycle.Event, issued enroll.Issued, facts func(*Device)) error {
	leaf := issued.Chain[0]
	kind := "LDevID"
	if ev == lifecycle.Birthed {
		kind = "IDevID"
	}
	a.log.Info("certificate accepted", "issued_for", kind, "subject", leaf.Subject.String(), "serial", Serial(leaf), "until", leaf.NotAfter)
	a.clock.Raise(leaf.NotBefore)
	err := a.move(ev, func(d *Device) {
		facts(d)
		d.Asking = Asking{}
	})
	if err != nil {
		return err
	}
	a.record("certificate", slog.String("issued_for", kind), slog.String("subject", leaf.Subject.String()), slog.String("serial", Serial(leaf)),
		slog.Time("not_after", leaf.NotAfter), slog.Any("changes", issued.Changes))
	return nil
}

// credential is a saved chain with its key, for a TLS handshake.
func credential(chainPEM string, key rot.Key) (*tls.Certificate, error) {
	chain, err := config.ParseCertificates([]byte(chainPEM))
	if err != nil {
		return nil, err
	}
	if !SamePublicKey(chain[0], key) {
		return nil, fmt.Errorf("the saved certificate of %s is for another key", chain[0].Subject)
	}
	return Credential(chain, key), nil
}

// assurance is what this agent can claim for a key of root by itself.
func assurance(root rot.Identity) rot.Assurance {
	if root.Kind == "tpm" {
		return rot.Claimed
	}
	return rot.Software
}
