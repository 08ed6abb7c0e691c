package agent

import (
	"context"
	"crypto"

	"birthmark/internal/config"
	"birthmark/pkg/csr"
	"birthmark/pkg/enroll"
)

// EST is a client for the server that s describes. It completes conf, which
// brings what does not stand in a configuration: the certificate and the clock.
// The password is read now and kept nowhere else; it is left out where a
// certificate speaks for the device.
func EST(s config.Server, conf enroll.Config) (*enroll.Client, error) {
	var err error
	conf.URL, conf.Label, conf.Timeout = s.URL, s.Label, s.Timeout
	if s.Anchors != "" {
		if conf.Anchors, err = config.ReadCertificates(s.Anchors); err != nil {
			return nil, err
		}
	}
	if s.AnchorSHA256 != "" {
		if conf.Pin, err = config.ParseSHA256(s.AnchorSHA256); err != nil {
			return nil, err
		}
	}
	if conf.Certificate != nil {
		conf.Username = ""
	} else if s.PasswordFile != "" {
		if conf.Password, err = config.ReadSecret(s.PasswordFile); err != nil {
			return nil, err
		}
	}
	return enroll.New(conf)
}

// Wishes asks a CA what it wants to see in a request (RFC 7030, 4.5). What cannot be
// read is a fault of the answer.
func Wishes(ctx context.Context, ca *enroll.Client) (csr.Attrs, error) {
	der, err := ca.CSRAttrs(ctx)
	if err != nil {
		return csr.Attrs{}, err
	}
	wish, err := csr.ParseAttrs(der)
	if err != nil {
		return csr.Attrs{}, &enroll.AnswerError{Reason: err.Error()}
	}
	return wish, nil
}

// Request is the request der of key's, as it was saved. Where the CA wished for a
// challengePassword, it goes out bound to its connection (RFC 7030, 3.5), with the
// same key and names each time.
func Request(der []byte, key crypto.Signer, bind bool) enroll.Request {
	req := enroll.Request{CSR: der, Key: key}
	if bind {
		req.Bind = func(binding string) ([]byte, error) { return csr.Challenge(der, binding, key) }
	}
	return req
}
