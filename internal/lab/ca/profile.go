package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// OperatorName is the common name of those who operate the lab, and of no device.
const OperatorName = "operator"

const (
	deviceLifetime = 90 * 24 * time.Hour
	// A release can be installed while its signer's certificate lasts. One is used for
	// two thirds of that, so every release has a year at least.
	signerLifetime = 3 * 365 * 24 * time.Hour
	namesLimit     = 4 << 10 // bytes of a subject and its alternative names
	rsaMin, rsaMax = 2048, 4096
)

// A Profile is a kind of certificate: for whom, for what, for how long.
type Profile struct {
	name     string
	usage    x509.ExtKeyUsage
	lifetime time.Duration         // 0: for ever
	altNames bool                  // a subjectAltName is copied from the request
	whose    func(cn string) error // refuses a common name
}

// Birth is the profile of an IDevID: it never ends (IEEE 802.1AR 8.7), so it is
// never renewed either.
func Birth() Profile {
	return Profile{name: "birth", usage: x509.ExtKeyUsageClientAuth, altNames: true, whose: CheckDeviceID}
}

// Device is the profile of an LDevID; a lifetime of 0 means 90 days.
func Device(lifetime time.Duration) Profile {
	if lifetime <= 0 {
		lifetime = deviceLifetime
	}
	return Profile{name: "device", usage: x509.ExtKeyUsageClientAuth, lifetime: lifetime, altNames: true, whose: CheckDeviceID}
}

// Operator is the profile of a person who operates the lab. All of them have the
// common name [OperatorName], and are told apart by the rest of their subject.
func Operator() Profile {
	return Profile{name: "operator", usage: x509.ExtKeyUsageClientAuth, lifetime: deviceLifetime, whose: func(cn string) error {
		if cn != OperatorName {
			return refuse("common name %q is not %q", cn, OperatorName)
		}
		return nil
	}}
}

// server is the profile of the lab's own servers. Nobody can ask for it.
func server() Profile {
	return Profile{name: "server", usage: x509.ExtKeyUsageServerAuth, lifetime: deviceLifetime}
}

// signer is the profile of who signs code. Nobody can ask for it.
func signer() Profile {
	return Profile{name: "signer", usage: x509.ExtKeyUsageCodeSigning, lifetime: signerLifetime}
}

// String is the name by which the record knows the profile.
func (p Profile) String() string { return p.name }

// deviceID is one level of an MQTT topic, without what some brokers treat
// specially.
var deviceID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// CheckDeviceID returns a [RefusedError] if id cannot be the name of a device.
func CheckDeviceID(id string) error {
	if !deviceID.MatchString(id) {
		return refuse("device id %.80q is not 1 to 64 of A-Z, a-z, 0-9, _ and -", id)
	}
	if strings.EqualFold(id, OperatorName) {
		return refuse("%q is not the name of a device", id)
	}
	return nil
}

// A RefusedError says what is wrong with a request: asked again, it would be
// refused again.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

func refuse(format string, args ...any) error {
	return &RefusedError{fmt.Sprintf(format, args...)}
}

// Check returns a [RefusedError] if nobody may have a certificate of this profile
// for that request.
func (p Profile) Check(csr *x509.CertificateRequest) error {
	// First what the signature costs, and what it is worth.
	if err := checkKey(csr.PublicKey); err != nil {
		return err
	}
	if !slices.Contains(signatures, csr.SignatureAlgorithm) {
		return refuse("the request is signed with %v, want ECDSA or RSA with SHA-256, SHA-384 or SHA-512", csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return refuse("the request is not signed by its own key: %v", err)
	}
	san := altNames(csr)
	if n := len(csr.RawSubject) + len(san); n > namesLimit {
		return refuse("the names in the request have %d bytes, limit %d", n, namesLimit)
	}
	if san != nil && !p.altNames {
		return refuse("alternative names in the request: there are none in a certificate for an %s", p)
	}
	cn, err := commonName(csr)
	if err != nil {
		return err
	}
	return p.whose(cn)
}

// signatures leaves out what crypto/x509 verifies and nobody should rely on: SHA-1
// is good enough for it in a request.
var signatures = []x509.SignatureAlgorithm{
	x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
	x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
	x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
}

func checkKey(key any) error {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return nil
		}
		return refuse("the key is on the curve %s, want P-256 or P-384", key.Curve.Params().Name)
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < rsaMin || n > rsaMax {
			return refuse("the RSA key has %d bits, want %d to %d", n, rsaMin, rsaMax)
		}
		return nil
	default:
		return refuse("the key is neither ECDSA nor RSA")
	}
}

var (
	oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidAltNames   = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// commonName is the only one of a subject. Of several, each reader takes another.
func commonName(csr *x509.CertificateRequest) (string, error) {
	var names []string
	for _, attr := range csr.Subject.Names {
		if attr.Type.Equal(oidCommonName) {
			text, _ := attr.Value.(string) // what is no string is no name
			names = append(names, text)
		}
	}
	if len(names) != 1 {
		return "", refuse("the subject has %d common names, want 1", len(names))
	}
	return names[0], nil
}

// altNames is the value of the request's subjectAltName, nil if there is none.
func altNames(csr *x509.CertificateRequest) []byte {
	for _, e := range csr.Extensions {
		if e.Id.Equal(oidAltNames) {
			return e.Value
		}
	}
	return nil
}
