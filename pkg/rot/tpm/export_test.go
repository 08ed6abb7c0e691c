package tpm

import (
	"net"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	gotpm "github.com/google/go-tpm/tpm2/transport"

	"birthmark/internal/swtpm"
	"birthmark/internal/swtpm/swtpmtest"
)

// Start powers on a TPM of the test's own. At the end of the test, nothing may be
// loaded in it.
func Start(tb testing.TB) *swtpm.TPM {
	tb.Helper()
	return clean(tb, swtpmtest.Start(tb))
}

// StartOther is Start for a TPM with other endorsement keys.
func StartOther(tb testing.TB) *swtpm.TPM {
	tb.Helper()
	return clean(tb, swtpmtest.StartOther(tb))
}

// clean has to come before whatever opens the TPM: cleanups run backwards.
func clean(tb testing.TB, s *swtpm.TPM) *swtpm.TPM {
	tb.Helper()
	tb.Cleanup(func() { WantClean(tb, s) })
	return s
}

// WantClean fails the test if something is loaded in the TPM. Nobody may hold its
// connection.
func WantClean(tb testing.TB, s *swtpm.TPM) {
	tb.Helper()
	conn, done := Direct(tb, s)
	defer done()
	for what, first := range map[string]uint32{"transient objects": 0x80000000, "loaded sessions": 0x02000000, "saved sessions": 0x03000000} {
		answer, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: handlesAtOnce}.Execute(conn)
		if err != nil {
			tb.Fatal(err)
		}
		list, err := answer.CapabilityData.Data.Handles()
		if err != nil {
			tb.Fatal(err)
		}
		if len(list.Handle) > 0 {
			tb.Errorf("%s are left in the TPM: %#x", what, list.Handle)
		}
	}
}

// EKHashes returns the hashes of all endorsement keys that a TPM makes.
func EKHashes(tb testing.TB, s *swtpm.TPM) []string {
	tb.Helper()
	conn, done := Direct(tb, s)
	defer done()
	var hashes []string
	for _, t := range ekTemplates {
		if t.name != swtpmLacks {
			hashes = append(hashes, keyHash(chip{tb, conn}.ek(t.public, 0)))
		}
	}
	return hashes
}

// Direct speaks to a TPM past our code, with go-tpm alone, until done is called:
// swtpm serves one client at a time.
func Direct(tb testing.TB, s *swtpm.TPM) (conn gotpm.TPM, done func()) {
	tb.Helper()
	c, err := net.Dial("unix", strings.TrimPrefix(s.Address(), "unix:"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return gotpm.FromReadWriter(c), func() { c.Close() }
}

// Loaded returns how many keys a Root has in the TPM's memory.
func Loaded(r *Root) int {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	n := 0
	for k := range r.loaded {
		if isTransient(k.handle.Handle) {
			n++
		}
	}
	return n
}
