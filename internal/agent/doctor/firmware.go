package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"birthmark/internal/agent/firmware"
	"birthmark/internal/agent/update"
	"birthmark/pkg/fota"
)

// firmware looks at what an update of the firmware needs, and how the last one went.
func (x *examination) firmware(ctx context.Context) []Check {
	c := Check{Name: "firmware", Result: OK}
	if x.installer == nil {
		return nil
	}
	st, err := x.installer(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Found = "this device has no installer: its firmware is updated by other means"
		return []Check{c}
	case err != nil:
		c = failed(c.Name, err)
		c.Result, c.Unreachable = Warn, false
		if errors.Is(err, fs.ErrPermission) {
			c.Do = "ask as root, or as a member of group birthmark-admin while the agent runs"
		} else if c.Do == "" {
			c.Do = "look at the log of birthmark-installer.service"
		}
		return []Check{c}
	}
	c = lastUpdate(st, x.device.Update)
	if _, err := firmware.Trust(x.clock); err != nil {
		c.Result, c.Found = Warn, c.Found+"; no release would be believed: "+err.Error()
		c.Do = "put the maker's certificates there: `birthmark firmware verify --help`"
	}
	return []Check{c}
}

// lastUpdate is what became of the last one, as far as it can be seen.
func lastUpdate(st fota.Status, u update.State) Check {
	c := Check{Name: "firmware", Result: OK, Found: fmt.Sprintf("%s runs %v", st.Compatible, st.Running)}
	switch {
	case len(st.Notes) > 0:
		c.Result, c.Found = Warn, c.Found+"; "+strings.Join(st.Notes, "; ")
		c.Do = "see to what it says; an update may be refused until then"
	case u.Phase == update.Settled && u.Outcome == update.Installed && u.Version != st.Running:
		c.Result, c.Found = Warn, c.Found+fmt.Sprintf(", and not %v, which was installed", u.Version)
		c.Do = "the boot loader found it damaged: install it again"
	}
	return c
}
