package fota_test

import (
	"errors"
	"testing"

	"birthmark/pkg/fota"
)

func TestPolicy(t *testing.T) {
	version := func(s string) fota.Version {
		v, err := fota.ParseVersion(s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct {
		name   string
		change func(*fota.Policy, *fota.Manifest)
		code   string // "" when it may pass
	}{
		{"a newer release", nil, ""},
		{"a release of the same security version", func(p *fota.Policy, m *fota.Manifest) { m.Version.Security = 5 }, ""},
		{"any release, where none is known to run", func(p *fota.Policy, m *fota.Manifest) { p.Running = fota.Version{} }, ""},
		{"a leap that is just no leap", func(p *fota.Policy, m *fota.Manifest) { m.Version.Security = p.Running.Security + fota.LeapLimit }, ""},
		{"a slot that is exactly filled", func(p *fota.Policy, m *fota.Manifest) { m.Images[0].Size = 1000 }, ""},
		{"a device with a slot that the release leaves alone", func(p *fota.Policy, m *fota.Manifest) { p.Slots["data"] = 1 }, ""},
		{"plain, where it is allowed", func(p *fota.Policy, m *fota.Manifest) { m.Format, p.AllowPlain = fota.FormatPlain, true }, ""},
		{"an older release, with permission", func(p *fota.Policy, m *fota.Manifest) {
			m.Version, p.Permit = version("1.0.0+sv4"), version("1.0.0+sv4")
		}, ""},

		{"a release for others", func(p *fota.Policy, m *fota.Manifest) { m.Compatible = "acme-gw2" }, "compatible"},
		{"a device that is nothing", func(p *fota.Policy, m *fota.Manifest) { p.Compatible = "" }, "compatible"},
		{"plain", func(p *fota.Policy, m *fota.Manifest) { m.Format = fota.FormatPlain }, "plain"},
		{"no format", func(p *fota.Policy, m *fota.Manifest) { m.Format = "" }, "plain"},
		{"the release that runs", func(p *fota.Policy, m *fota.Manifest) { m.Version = p.Running }, "same"},
		{"the release that runs, with permission", func(p *fota.Policy, m *fota.Manifest) {
			m.Version, p.Permit = p.Running, p.Running
		}, "same"},
		{"an older release", func(p *fota.Policy, m *fota.Manifest) { m.Version = version("1.9.9+sv5") }, "downgrade"},
		{"an older release of a newer security version", func(p *fota.Policy, m *fota.Manifest) { m.Version = version("1.9.9+sv9") }, "downgrade"},
		{"a newer release of an older security version", func(p *fota.Policy, m *fota.Manifest) { m.Version = version("3.0.0+sv4") }, "downgrade"},
		{"an older release, with permission for another", func(p *fota.Policy, m *fota.Manifest) {
			m.Version, p.Permit = version("1.0.0+sv4"), version("1.0.1+sv4")
		}, "downgrade"},
		{"a leap of the security version", func(p *fota.Policy, m *fota.Manifest) { m.Version.Security = p.Running.Security + fota.LeapLimit + 1 }, "leap"},
		{"below the floor", func(p *fota.Policy, m *fota.Manifest) { m.Version = version("3.0.0+sv3") }, "floor"},
		{"below the floor, with permission", func(p *fota.Policy, m *fota.Manifest) {
			m.Version, p.Permit = version("1.0.0+sv3"), version("1.0.0+sv3")
		}, "floor"},
		{"the release that runs, below the floor", func(p *fota.Policy, m *fota.Manifest) { m.Version, p.Floor = p.Running, 9 }, "floor"},
		{"an image for a slot that is not there", func(p *fota.Policy, m *fota.Manifest) { m.Images[1].Slot = "rescue" }, "slot"},
		{"a device without slots", func(p *fota.Policy, m *fota.Manifest) { p.Slots = nil }, "slot"},
		{"an image one byte too large", func(p *fota.Policy, m *fota.Manifest) { m.Images[1].Size = 501 }, "size"},
	} {
		p := fota.Policy{Compatible: "acme-gw", Running: version("2.0.0+sv5"), Floor: 4,
			Slots: map[string]int64{"rootfs": 1000, "appfs": 500}}
		m := fota.Manifest{Compatible: "acme-gw", Version: version("2.1.0+sv6"), Format: fota.FormatVerity,
			Images: []fota.Image{{Slot: "rootfs", File: "a", Size: 900}, {Slot: "appfs", File: "b", Size: 100}}}
		if c.change != nil {
			c.change(&p, &m)
		}
		err := p.Check(&m)
		var r *fota.Refusal
		switch {
		case c.code == "" && err != nil:
			t.Errorf("%s: got %v, want it to pass", c.name, err)
		case c.code != "" && (!errors.As(err, &r) || r.Stage != fota.StagePolicy || r.Code != c.code):
			t.Errorf("%s: got %v, want a refusal for %s", c.name, err, c.code)
		}
	}
}
