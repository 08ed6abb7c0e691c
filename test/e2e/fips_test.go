package e2e

import (
	"encoding/json"
	"os"
	"testing"

	"birthmark/internal/agent/agenttest"
	"birthmark/internal/swtpm/swtpmtest"
	"birthmark/pkg/lifecycle"
)

// certified is the version of Go's cryptographic module that `make fips` builds
// with: the one that has been through FIPS 140-3 validation.
const certified = "v1.0.0"

var birthmarkFIPS = binary("birthmark-fips")

// TestFIPSLife takes a device from blank to service with the certified module,
// once as it is built and once so strictly that any cryptography which is not
// approved fails.
func TestFIPSLife(t *testing.T) {
	if _, err := os.Stat(birthmarkFIPS); err != nil {
		t.Fatalf("%v: run make fips first", err)
	}
	bench := agenttest.StartLab(t)
	for _, mode := range []string{"on", "only"} {
		t.Run(mode, func(t *testing.T) {
			id, tpm := "fips-"+mode, swtpmtest.Start(t)
			env := append(bench.DeviceEnv(t, id, tpm.Address()), "GODEBUG=fips140="+mode)

			var said struct{ FIPS string }
			if err := json.Unmarshal([]byte(must(t, env, birthmarkFIPS, "version", "--json")), &said); err != nil {
				t.Fatal(err)
			}
			if said.FIPS != certified {
				t.Errorf("it says that its FIPS 140-3 module is %q, want %q", said.FIPS, certified)
			}
			live(t, birthmarkFIPS, bench, env, id)
			if d := agenttest.CheckState(t, stateFolder(env), tpm.Address()); d.State != lifecycle.Operational {
				t.Errorf("the device is %s, want %s", d.State, lifecycle.Operational)
			}
		})
	}
}
