package doctor

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	"birthmark/pkg/rot/tpm"
)

func TestACertificateIsWarnedOfInTime(t *testing.T) {
	start := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	cert := &x509.Certificate{NotBefore: start, NotAfter: start.AddDate(0, 0, 100)}
	for _, tc := range []struct {
		day    float64
		result Result
		do     string
	}{
		{0, OK, ""}, {79.9, OK, ""}, {80, Warn, "renew it"}, {89.9, Warn, "renew it"}, {90, Warn, "in these days"},
		{95, Warn, "renew it now"}, {99.99, Warn, "renew it now"}, {100, Fail, "enrol again"}, {1000, Fail, "enrol again"},
	} {
		now := start.Add(time.Duration(tc.day * 24 * float64(time.Hour)))
		if c := life("x", cert, now); c.Result != tc.result || !strings.Contains(c.Do, tc.do) {
			t.Errorf("day %v of 100: %+v, want %s and %q", tc.day, c, tc.result, tc.do)
		}
	}
	// The date of a certificate that does not expire (RFC 5280, 4.1.2.5).
	cert.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	if c := life("x", cert, start.AddDate(50, 0, 0)); c.Result != OK || !strings.Contains(c.Found, "until 9999-12-31") {
		t.Errorf("after fifty years of the longest life: %+v", c)
	}
}

func TestTheConditionOfATPM(t *testing.T) {
	well := tpm.Health{Vendor: "X", Firmware: "1", EKCertificate: true, MaxFailures: 32, ObjectsFree: 3, Recovery: time.Hour}
	for name, tc := range map[string]struct {
		change func(*tpm.Health)
		warns  string
	}{
		"well":              {func(*tpm.Health) {}, ""},
		"no EK certificate": {func(h *tpm.Health) { h.EKCertificate = false }, "tpm ek certificate"},
		"wrong tries":       {func(h *tpm.Health) { h.Failures = 1 }, "tpm lockout"},
		"lockout":           {func(h *tpm.Health) { h.Lockout = true }, "tpm lockout"},
		"full":              {func(h *tpm.Health) { h.ObjectsFree = 0 }, "tpm handles"},
	} {
		h := well
		tc.change(&h)
		for _, c := range condition(h) {
			if warned := c.Result == Warn; warned != (c.Name == tc.warns) || warned && c.Do == "" {
				t.Errorf("%s: %s", name, fmt.Sprintf("%+v", c))
			}
		}
	}
}
