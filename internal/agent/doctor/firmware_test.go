package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"birthmark/internal/agent"
	"birthmark/internal/agent/update"
	"birthmark/pkg/clock"
	"birthmark/pkg/fota"
)

func TestWhatUpdatesNeed(t *testing.T) {
	running := fota.Version{Major: 1, Security: 1}
	well := fota.Status{Compatible: "gw", Running: running}
	for _, c := range []struct {
		name   string
		st     fota.Status
		err    error
		result Result
		found  string
	}{
		{"a device without an installer", fota.Status{}, fmt.Errorf("cannot reach the installer: %w", os.ErrNotExist), OK, "by other means"},
		{"one who may not be asked", fota.Status{}, fmt.Errorf("cannot reach the installer: %w", os.ErrPermission), Warn, "cannot reach"},
		{"one that is in trouble", fota.Status{}, errors.New("it hung up"), Warn, "it hung up"},
		{"nobody to believe", well, nil, Warn, "no release would be believed"}, // a machine that builds this has no such files
	} {
		x := &examination{clock: clock.Host(), device: agent.Device{}, installer: func(context.Context) (fota.Status, error) { return c.st, c.err }}
		got := x.firmware(t.Context())
		if len(got) != 1 || got[0].Result != c.result || !strings.Contains(got[0].Found, c.found) || got[0].Result == Warn && got[0].Do == "" {
			t.Errorf("%s: %+v, want %s and %q", c.name, got, c.result, c.found)
		}
	}
	if got := (&examination{}).firmware(t.Context()); got != nil {
		t.Errorf("where nobody can ask: %+v, want no check", got)
	}
	d := agent.Device{Update: update.State{Phase: update.Settled, Outcome: update.Installed, Version: fota.Version{Major: 2}}}
	noted := well
	noted.Notes = []string{"the boot loader does not count"}
	for name, c := range map[string]struct {
		st     fota.Status
		result Result
		found  string
	}{
		"the release before runs": {well, Warn, "and not 2.0.0+sv0"},
		"a note":                  {noted, Warn, "does not count"},
		"all is well":             {fota.Status{Compatible: "gw", Running: d.Update.Version}, OK, "gw runs 2.0.0"},
	} {
		if got := lastUpdate(c.st, d.Update); got.Result != c.result || !strings.Contains(got.Found, c.found) {
			t.Errorf("%s: %+v, want %s and %q", name, got, c.result, c.found)
		}
	}
}
