package source

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"time"
	"unicode"
)

// An UnavailableError says that the bytes could not be had now. The same read may succeed
// later; nothing is known to be wrong with the file. It is never an io.EOF, or an
// io.ErrUnexpectedEOF, within.
type UnavailableError struct {
	RetryAfter time.Duration // what the server asked for, up to a day; 0: nothing
	Err        error
}

func (e *UnavailableError) Error() string {
	return oneLine("the server is not available: " + e.Err.Error())
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// An UntrustedError says that the server did not show a certificate that the caller's
// [tls.Config] believes. It will show the same one again.
type UntrustedError struct{ Err error }

func (e *UntrustedError) Error() string {
	return oneLine("the server is not one that was vouched for: " + e.Err.Error())
}

func (e *UntrustedError) Unwrap() error { return e.Err }

// distrusting is conf, whose errors about the server's certificate are an [UntrustedError],
// except of one that is not valid yet: either clock may be a little wrong, or about to be
// set, and then it passes by waiting. crypto/tls verifies first, if it is left to.
func distrusting(conf *tls.Config) *tls.Config {
	conf = conf.Clone()
	if conf == nil {
		conf = &tls.Config{}
	}
	if verify := conf.VerifyConnection; verify != nil {
		conf.VerifyConnection = func(s tls.ConnectionState) error {
			if err := verify(s); err != nil {
				return &UntrustedError{err}
			}
			return nil
		}
	}
	return conf
}

// untrusted is the error of a handshake, if it says for good that the server is not
// believed; else nil.
func untrusted(err error) error {
	var early x509.CertificateInvalidError
	if errors.As(err, &early) && early.Reason == x509.Expired && time.Now().Before(early.Cert.NotBefore) {
		return nil
	}
	var ours *UntrustedError
	var theirs *tls.CertificateVerificationError
	switch {
	case errors.As(err, &ours):
		return ours
	case errors.As(err, &theirs):
		return &UntrustedError{theirs}
	}
	return nil
}

const lineLimit = 400 // characters of an error

// oneLine makes a text that may hold a server's words fit for a line of a log: no control
// characters, nor those that turn the direction of writing, and cut if it is long. Texts
// that are made here quote and cut what they repeat; those of net/http do neither.
func oneLine(text string) string {
	line := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, text))
	if len(line) > lineLimit {
		line = append(line[:lineLimit-1], '…')
	}
	return string(line)
}
