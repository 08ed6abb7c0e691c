package agent_test

import (
	"crypto/ecdsa"
	"os"
	"path/filepath"
	"testing"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/config"
	"birthmark/internal/lab"
	"birthmark/pkg/rot"
	"birthmark/pkg/store"
)

// TestARefusedKeyIsAskedForAgain as long as its kind is wanted: the owner's CA refuses
// the first request for a wrong password. With the right one the device asks for the
// same key or, if it is configured to have another kind by then, for a new one.
func TestARefusedKeyIsAskedForAgain(t *testing.T) {
	bench := agenttest.StartLab(t)
	for id, then := range map[string]rot.Algorithm{"dev-same-kind": rot.P256, "dev-other-kind": rot.P384} {
		p := newPatient(t, bench, id)
		p.cfg.Birth.Mode = config.BirthNone
		p.cfg.TPM.Algorithm = string(rot.P256)
		p.cfg.EST.PasswordFile = filepath.Join(t.TempDir(), "password")
		password := func(text string) {
			if err := os.WriteFile(p.cfg.EST.PasswordFile, []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		password("no such password")
		p.start()
		p.log.await(t, "step failed, will be tried again")
		p.stop()
		refused, _, err := store.Read[agent.Device](p.cfg.Device.State)
		if err != nil || refused.Asking.Key == "" || refused.Asking.CSR != nil {
			t.Fatalf("%s: it remembers %+v, %v, want a key without a request", id, refused.Asking, err)
		}

		right, err := bench.NewPassword(lab.Owner, id)
		if err != nil {
			t.Fatal(err)
		}
		password(right)
		p.cfg.TPM.Algorithm = string(then)
		p.reopen()
		p.start()
		p.awaitService()
		p.stop()
		d, _, err := store.Read[agent.Device](p.cfg.Device.State)
		if err != nil {
			t.Fatal(err)
		}
		if same := d.Owner.Key == refused.Asking.Key; same != (then == rot.P256) {
			t.Errorf("%s: the key that was refused got the certificate: %t", id, same)
		}
		chain, err := config.ParseCertificates([]byte(d.Owner.Chain))
		if err != nil {
			t.Fatal(err)
		}
		if key := chain[0].PublicKey.(*ecdsa.PublicKey); key.Curve.Params().Name != string(then) {
			t.Errorf("%s: the certificate is for a key on %s, want %s", id, key.Curve.Params().Name, then)
		}
		agenttest.CheckIssued(t, filepath.Join(bench.Dir, lab.Owner), id)
	}
}
