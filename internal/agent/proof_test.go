package agent_test

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/agenttest"
	"birthmark/internal/lab"
	"birthmark/internal/lab/est"
	"birthmark/pkg/lifecycle"
	"birthmark/pkg/store"
)

// challenge is a CA's wish for proof of possession (RFC 7030, 4.5.2).
func challenge(t *testing.T) []byte {
	t.Helper()
	der, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 2, 840, 113549, 1, 9, 7}})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// proofAfterALostAnswer lets both CAs insist on a request that is
// bound to its connection, and loses each answer to a power cut. The device asks
// again over another connection, with the same key, and gets the same certificate.
func proofAfterALostAnswer(t *testing.T) {
	wish := challenge(t)
	bench := agenttest.StartLab(t, func(o *lab.Options) {
		o.EST = func(_ string, conf *est.Config) { conf.CSRAttrs = wish }
	})
	for id, cut := range map[string]string{"dev-never": "", "dev-birth": "after est: ask the maker", "dev-owner": "after est: ask the owner"} {
		w := &life{t: t, bench: bench, id: id, cutAt: -1, cutOn: cut}
		w.live() // which counts what was issued
		if w.where != cut {
			t.Errorf("%s: the power was cut %q, want %q", id, w.where, cut)
		}
	}
}

func TestALaterIsRememberedOverARestart(t *testing.T) { laterOverARestart(t, challenge(t)) }

// laterOverARestart lets the owner's CA answer "later" (202), and stops the agent
// then. The next one waits for what is left of the time, and asks with the same key
// and, where the CA does not wish for one that is bound to its connection, the same
// request.
func laterOverARestart(t *testing.T, wish []byte) {
	const wait = 5 * time.Second // the least that there is
	var mu sync.Mutex
	var asked []*x509.CertificateRequest
	var at []time.Time
	bench := agenttest.StartLab(t, func(o *lab.Options) {
		o.EST = func(whose string, conf *est.Config) {
			if whose != lab.Owner {
				return
			}
			conf.CSRAttrs = wish
			conf.Hold = func(csr *x509.CertificateRequest) time.Duration {
				mu.Lock()
				defer mu.Unlock()
				if asked, at = append(asked, csr), append(at, time.Now()); len(asked) == 1 {
					return wait
				}
				return 0
			}
		}
	})
	p := newPatient(t, bench, "dev-later")
	p.start()
	p.log.await(t, "step failed, will be tried again")
	p.stop()
	d, _, err := store.Read[agent.Device](p.cfg.Device.State)
	if err != nil || d.State != lifecycle.Born || d.Asking.Key == "" || d.Asking.CSR == nil || d.Asking.Bind != (wish != nil) || d.Asking.Tries != 1 {
		t.Fatalf("it remembers %+v, %v, want key and request of one try", d.Asking, err)
	}
	if left := time.Until(d.Asking.RetryAt); left > wait || left < -wait {
		t.Errorf("it remembers to wait for %v, want what is left of %v", left, wait)
	}

	p.reopen()
	p.start()
	p.awaitService()
	p.stop()
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 2 {
		t.Fatalf("the CA was asked %d times, want twice", len(asked))
	}
	if waited := at[1].Sub(at[0]); waited < wait-time.Second {
		t.Errorf("it came back after %v, want %v", waited, wait)
	}
	if !bytes.Equal(asked[0].RawSubjectPublicKeyInfo, asked[1].RawSubjectPublicKeyInfo) || !bytes.Equal(asked[0].RawSubject, asked[1].RawSubject) {
		t.Error("it came back with another key, or under another name")
	}
	if bound := !bytes.Equal(asked[0].Raw, asked[1].Raw); bound != (wish != nil) {
		t.Errorf("it came back with another request: %v, want that only where it is bound to a connection", bound)
	}
	agenttest.CheckIssued(t, filepath.Join(bench.Dir, lab.Owner), "dev-later")
}
