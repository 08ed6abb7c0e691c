// Package lab is everything that is not on the device, for demonstrations, tests and
// small fleets: a maker's CA and an owner's, each behind its EST server, and the
// owner's MQTT broker. All of it is in one folder and one process, and listens on the
// loopback interface only.
//
// [Up] brings a lab up, [Lab.Close] takes it down. What it knows is in the folder, so
// that it goes on where it stopped, on the same ports: devices that were configured
// once stay configured. [NewPassword] and [Mosquitto] work on the folder, beside a lab
// that is up or without one.
//
//	maker/, owner/     the CAs; issued.jsonl in each lists what was issued, a line each
//	device/            configuration of a device of this lab: birthmark.toml,
//	                   maker-root.pem, owner-root.pem; one that is in the same place
//	                   needs only a name and a password
//	operator/          cert.pem, key.pem, ca.pem: for mosquitto_sub, mosquitto_pub
//	firmware/          the CA of who signs firmware, if something was signed: package sign
//	mosquitto/         mosquitto.conf and acl, if they were asked for
//	broker.log         what clients of the broker did, a line of JSON each; at 16 MiB it
//	                   becomes broker.log.1, and the one before it goes
//	lab.json           the ports
//
// device/ and operator/ are written anew at every start. The operator's certificate,
// and mosquitto's, then have 30 days to go at least.
//
// Who may be certified: a device that has a one-time password of the maker, by the
// maker (IDevID); a device that has a certificate of the maker, or a one-time password
// of the owner, by the owner (LDevID). The broker lets in who the owner has certified.
package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"birthmark/internal/lab/broker"
	"birthmark/internal/lab/ca"
	"birthmark/internal/lab/est"
)

// Options say what kind of lab it is to be.
type Options struct {
	Dir string       // the folder; made if it is not there
	Log *slog.Logger // nil for none

	// Hosts are names and addresses by which devices reach the servers, besides those of
	// the loopback interface: a virtual machine sees that from outside.
	Hosts []string

	// EST, if it is set, may change what an EST server is started with; whose is [Maker]
	// or [Owner].
	EST func(whose string, conf *est.Config)

	// Heard is told of every message that the broker accepts, before it is
	// acknowledged. It is called from several goroutines and must not block for long.
	Heard func(client, topic string, payload []byte)

	// NoBroker leaves the broker's port free, for mosquitto. Heard hears nothing.
	NoBroker bool
}

// A Lab is up until it is closed.
type Lab struct {
	folder *folder
	close  sync.Once
	undo   []func() error // what Close has to do, last first
}

// Up brings a lab up. ctx is for that only. The cause of the error may be ErrInUse,
// or syscall.EADDRINUSE where somebody else listens on one of the lab's ports.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Lab{}
	if err := l.start(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot bring up the lab in %s: %w", o.Dir, err), l.Close())
	}
	return l, nil
}

func (l *Lab) start(ctx context.Context, o Options) error {
	f, err := openFolder(ctx, o.Dir)
	if err != nil {
		return err
	}
	l.folder = f
	l.undo = append(l.undo, f.close)
	for _, server := range []struct {
		whose string
		port  int
		conf  est.Config
	}{
		{Maker, f.ports.Maker, est.Config{CA: f.maker, Profile: ca.Birth()}},
		{Owner, f.ports.Owner, est.Config{CA: f.owner, Profile: ca.Device(0), Clients: []*x509.Certificate{f.maker.Root()}}},
	} {
		server.conf.Log, server.conf.Hosts = o.Log.With("ca", server.whose), o.Hosts
		if o.EST != nil {
			o.EST(server.whose, &server.conf)
		}
		s, err := est.Start(address(server.port), server.conf)
		if err != nil {
			return err
		}
		l.undo = append(l.undo, s.Close)
	}
	if o.NoBroker {
		return nil
	}
	journal, err := openJournal(l.BrokerLog())
	if err != nil {
		return err
	}
	l.undo = append(l.undo, journal.Close)
	roots := x509.NewCertPool()
	roots.AddCert(f.owner.Root())
	b, err := broker.Start(broker.Options{
		Address: address(f.ports.Broker), Roots: roots,
		Certificate: func() (*tls.Certificate, error) { return f.owner.Server(brokerName, o.Hosts...) },
		OnPublish:   o.Heard, Journal: journal, Log: o.Log,
	})
	if err != nil {
		return err
	}
	l.undo = append(l.undo, b.Close)
	return nil
}

// Close takes the lab down and waits for it. It may be called again.
func (l *Lab) Close() error {
	var errs []error
	l.close.Do(func() {
		for _, undo := range slices.Backward(l.undo) {
			errs = append(errs, undo())
		}
	})
	return errors.Join(errs...)
}

// Dir is the lab's folder.
func (l *Lab) Dir() string { return l.folder.dir }

// MakerURL and OwnerURL are the EST servers, https://127.0.0.1:PORT.
func (l *Lab) MakerURL() string { return l.folder.ports.makerURL() }
func (l *Lab) OwnerURL() string { return l.folder.ports.ownerURL() }

// BrokerURL is the broker, mqtts://127.0.0.1:PORT, or where mosquitto is to be.
func (l *Lab) BrokerURL() string { return l.folder.ports.brokerURL() }

// BrokerLog is the file with the broker's own log.
func (l *Lab) BrokerLog() string { return l.folder.path("broker.log") }

// OwnerCA is the owner's CA. It is closed with the lab.
func (l *Lab) OwnerCA() *ca.CA { return l.folder.owner }

// NewPassword makes a one-time password for a device, see the function of that name.
func (l *Lab) NewPassword(whose, id string) (string, error) {
	return NewPassword(l.folder.dir, whose, id)
}
