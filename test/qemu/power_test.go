package main

import (
	"crypto/x509"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"birthmark/internal/lab"
	"birthmark/internal/lab/est"
	"birthmark/test/qemu/machine"
)

// fromEnvironment is a number that somebody may want to be another one.
func fromEnvironment(name string, usual int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return usual
}

// seeded is chance that can be had again: SEED in the environment.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// newWatchedWorld is newWorld, in which asked is told of every request for a certificate,
// before it is answered.
func newWatchedWorld(t *testing.T, asked func(whose string, csr []byte)) *world {
	t.Helper()
	w := &world{T: t, news: make(chan struct{}, 1)}
	l, err := lab.Up(t.Context(), lab.Options{
		Dir: filepath.Join(t.TempDir(), "lab"), Hosts: []string{machine.Host}, Heard: w.hear,
		EST: func(whose string, conf *est.Config) {
			conf.Hold = func(csr *x509.CertificateRequest) time.Duration {
				asked(whose, csr.Raw)
				return 0
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Lab = l
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}
