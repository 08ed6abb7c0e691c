package installer

import (
	"bytes"
	"context"
	"crypto/x509"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
	"birthmark/pkg/fota/bundle/bundletest"
)

func TestWithoutTrustNobodyIsAskedForAnything(t *testing.T) {
	d := newDevice(t)
	good := d.release("1.1.0+sv2")
	for file, code := range map[string]string{bundle.AnchorsFile: "anchors", bundle.IssuersFile: "issuers", bundle.CRLsFile: "crl"} {
		for what, text := range map[string][]byte{
			"missing":   nil,
			"of no use": []byte("trust me\n"),
		} {
			t.Run(file+" "+what, func(t *testing.T) {
				was, err := os.ReadFile(filepath.Join(d.etc, file))
				if err != nil {
					t.Fatal(err)
				}
				defer d.trust(d.etc, file, was)
				if text == nil {
					if err := os.Remove(filepath.Join(d.etc, file)); err != nil {
						t.Fatal(err)
					}
				} else {
					d.trust(d.etc, file, text)
				}
				last, asks := d.offer(len(good), func(_ int, a ask) []byte { return honest(good, a) })
				wantRefusal(t, what, last.err(), fota.StageChain, code)
				if asks != 0 {
					t.Errorf("the peer was asked %d times", asks)
				}
			})
		}
	}
	if _, err := d.try(good); err != nil {
		t.Errorf("with everything in its place again: %v", err)
	}
}

// TestTheOwnersFilesComeFirst puts another anchor into the image's folder, which does not
// count, and another CRL, which does.
func TestTheOwnersFilesComeFirst(t *testing.T) {
	d := newDevice(t)
	stranger := bundletest.NewPKI(t, "P-384", "P-384")
	d.trust(d.usr, bundle.AnchorsFile, bundletest.PEM(stranger.Root.Cert))
	d.trust(d.usr, bundle.IssuersFile, bundletest.PEM(stranger.Issuing.Cert))
	d.mustInstall("1.1.0+sv2")
	_, err := d.try(bundletest.NewRelease("acme-gw", "1.1.0+sv2").Parts(t, stranger.Signer).Bytes())
	wantRefusal(t, "a bundle of whom the image trusts", err, fota.StageChain, "issuer")
	d.trust(d.usr, bundle.CRLsFile, d.crls(nil, d.pki.Signer))
	_, err = d.try(d.release("1.1.0+sv2"))
	wantRefusal(t, "a signer that the image's CRL lists", err, fota.StageChain, "revoked")
}

func TestAnOlderCRLIsNotAcceptedAgain(t *testing.T) {
	d := newDevice(t)
	number := func(n int64) []byte {
		return d.crls(func(l *x509.RevocationList) { l.Number = big.NewInt(n) })
	}
	for i, c := range []struct {
		number int64
		good   bool
	}{{7, true}, {7, true}, {6, false}, {7, true}, {200, true}, {199, false}, {7, false}, {200, true}} {
		d.trust(d.etc, bundle.CRLsFile, number(c.number))
		_, err := d.try(d.release("1.1.0+sv2"))
		if c.good && err != nil {
			t.Errorf("step %d, number %d: %v", i, c.number, err)
		}
		if !c.good {
			wantRefusal(t, "an older CRL", err, fota.StageChain, "stale")
		}
		d.start()
	}
	// A signer who is revoked now does not become good again with the CRL of before.
	d.trust(d.etc, bundle.CRLsFile, d.crls(func(l *x509.RevocationList) { l.Number = big.NewInt(201) }, d.pki.Signer))
	_, err := d.try(d.release("1.1.0+sv2"))
	wantRefusal(t, "a revoked signer", err, fota.StageChain, "revoked")
	d.trust(d.etc, bundle.CRLsFile, append(number(199), number(200)...))
	if _, err := d.try(d.release("1.1.0+sv2")); err != nil {
		t.Errorf("an old CRL beside the newest: %v", err)
	}
}

// TestGraceHasAnEnd installs with a CRL that is over.
func TestGraceHasAnEnd(t *testing.T) {
	d := newDevice(t)
	for age, good := range map[time.Duration]bool{29 * 24 * time.Hour: true, 31 * 24 * time.Hour: false} {
		d.trust(d.etc, bundle.CRLsFile, d.crls(func(l *x509.RevocationList) {
			l.NextUpdate = time.Now().Add(-age)
			l.ThisUpdate = l.NextUpdate.Add(-time.Hour)
		}))
		d.grace = 30 * 24 * time.Hour
		d.start()
		_, err := d.try(d.release("1.1.0+sv2"))
		if good && err != nil {
			t.Errorf("a CRL that is over since %v: %v", age, err)
		}
		if !good {
			wantRefusal(t, "a CRL that is over for too long", err, fota.StageChain, "stale")
		}
	}
}

// TestPowerCutsLeaveNothingToArm cuts the power at every write of the state file and at
// every call of the boot loader, in every way that leaves the file as it was, as it is,
// or in pieces. Only what was finished may be armed afterwards, and the CRL that was
// believed is remembered before a slot is written.
func TestPowerCutsLeaveNothingToArm(t *testing.T) {
	d := newDevice(t)
	d.mustInstall("1.1.0+sv2")
	d.trust(d.etc, bundle.CRLsFile, d.crls(func(l *x509.RevocationList) { l.Number = big.NewInt(1 << 40) }))
	type cut struct {
		when    string
		text    []byte // of the state file
		writing bool   // a slot was begun
	}
	var cuts []cut
	state := filepath.Join(d.state, "state.json")
	writing := false
	look := func(when string) {
		text, err := os.ReadFile(state)
		if err != nil {
			t.Fatal(err)
		}
		cuts = append(cuts, cut{when, text, writing})
	}
	d.loader.set(func() {
		d.server.memory.Cut = look
		d.loader.during = func(context.Context) { writing = true; look("while a slot is written") }
	})
	d.mustInstall("1.2.0+sv2")
	d.loader.set(func() { d.server.memory.Cut, d.loader.during = nil, nil })
	look("at the end")
	if len(cuts) < 8 { // three writes, two slots, the end
		t.Fatalf("there were %d cuts", len(cuts))
	}

	for i, c := range cuts {
		last := i == len(cuts)-1 || c.when == "after write" && i == len(cuts)-2
		for n := 0; n <= len(c.text); n += max(1, len(c.text)/16) {
			if n+len(c.text)/16 > len(c.text) {
				n = len(c.text)
			}
			d.stopped()
			d.put(state, c.text[:n])
			d.start()
			whole := n == len(c.text)
			st, err := d.Status(t.Context())
			if err != nil || (len(st.Notes) == 0) != whole {
				t.Fatalf("%s, %d bytes of %d: the status is %+v, %v", c.when, n, len(c.text), st, err)
			}
			d.loader.set(func() { d.loader.status.Other = fota.Other{Version: version(t, "1.2.0+sv2"), Mark: fota.Staged} }) // the worst that could be
			err = d.Arm(t.Context(), version(t, "1.2.0+sv2"))
			if last && whole && err != nil {
				t.Errorf("%s: arm: %v", c.when, err)
			}
			if !last || !whole {
				wantRefusal(t, c.when, err, fota.StageBoot, "staged")
			}
			if whole && c.writing {
				d.loader.set(func() { d.loader.status.Other = fota.Other{} })
				wantRefusal(t, c.when+", what was staged before", d.Arm(t.Context(), version(t, "1.1.0+sv2")), fota.StageBoot, "staged")
				if !bytes.Contains(c.text, []byte("1099511627776")) {
					t.Errorf("%s: the number of the CRL is not remembered:\n%s", c.when, c.text)
				}
			}
		}
	}
}

func TestADamagedStateIsSetAsideAndSaid(t *testing.T) {
	d := newDevice(t)
	d.mustInstall("1.1.0+sv2")
	state := filepath.Join(d.state, "state.json")
	for _, text := range []string{"", "{", "[]", `{"staged":7}`, `{"staged":{"version":"x"}}`, `{"crls":{"a":"x"}}`, `{"crls":{"a":1.5}}`, strings.Repeat(" ", 1<<20)} {
		d.stopped()
		d.put(state, []byte(text))
		d.start()
		st, err := d.Status(t.Context())
		if err != nil || st.Staged != nil || len(st.Notes) != 1 || !strings.Contains(st.Notes[0], "set aside as "+state+".damaged-") {
			t.Errorf("%.40q: the status is %+v, %v", text, st, err)
		}
		wantRefusal(t, "arm", d.Arm(t.Context(), version(t, "1.1.0+sv2")), fota.StageBoot, "staged")
		d.mustInstall("1.1.0+sv2")
	}
}
