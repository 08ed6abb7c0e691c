package rauc

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"birthmark/pkg/fota"
)

// wantUnsafe holds that every method refuses a device, and says why.
func (d *testDevice) wantUnsafe(when string, i Installer, why string) {
	d.Helper()
	r := d.Release("1.1.0+sv1")
	_, statusErr := i.Status(d.Context())
	for method, err := range map[string]error{
		"Status":  statusErr,
		"Install": i.Install(d.Context(), r.Manifest, nil, nil),
		"Arm":     i.Arm(d.Context(), r.Manifest),
		"Cancel":  i.Cancel(d.Context()),
		"Bless":   i.Bless(d.Context()),
	} {
		var no *fota.Refusal
		if !errors.As(err, &no) || no.Stage != fota.StageBoot || no.Code != "settings" || !strings.Contains(err.Error(), why) {
			d.Errorf("%s: %s: got %v, want a refusal that says %q", when, method, err, why)
		}
	}
}

// stockBus has the rules of Debian's own system.conf.
const stockBus = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><policy context="default">
<allow user="*"/><deny own="*"/><deny send_type="method_call"/>
<allow send_type="signal"/><allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
<allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
<deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus" send_member="UpdateActivationEnvironment"/>
</policy>
<policy user="root"><allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/></policy>
<include ignore_missing="yes">/etc/dbus-1/system.conf</include></busconfig>`

// What RAUC's settings, the bus and systemd let happen is refused before RAUC is asked for
// anything: there is no bus here.
func TestUnsafeDevicesAreRefused(t *testing.T) {
	const (
		rules = "usr/share/dbus-1/system.d/de.pengutronix.rauc.conf"
		more  = "etc/dbus-1/system.d/more.conf"
	)
	link := func(to, name string) func(d *testDevice) {
		return func(d *testDevice) {
			d.must(os.MkdirAll(d.path(name[:strings.LastIndexByte(name, '/')]), 0o755))
			d.must(os.Symlink(to, d.path(name)))
		}
	}
	unit := func(folder string) func(d *testDevice) {
		return func(d *testDevice) {
			d.must(os.MkdirAll(d.path(folder), 0o755))
			d.write(folder+"/"+markGood, "[Service]\nExecStart=/usr/bin/rauc status mark-good\n")
		}
	}
	edit := func(from, to string) func(d *testDevice) {
		return func(d *testDevice) { d.change(settingsFile, from, to) }
	}
	type spoiled struct {
		spoil func(d *testDevice)
		why   string
	}
	// add writes a file of the bus that is not what it should be.
	add := func(file, policy, why string) spoiled {
		return spoiled{func(d *testDevice) { d.write(file, "<busconfig>"+policy+"</busconfig>") }, why}
	}
	for name, c := range map[string]spoiled{
		"for other devices":           {edit("compatible=acme-gw", "compatible=acme-hub"), `compatible is "acme-hub"`},
		"no boot loader":              {edit("bootloader=custom", "bootloader=noop"), `bootloader is "noop"`},
		"one that is not named":       {edit("bootloader=custom\n", ""), `bootloader is ""`},
		"no status file":              {edit("statusfile=", "#statusfile="), "write to them"},
		"a status file in each slot":  {edit("statusfile=", "statusfile=per-slot\n#"), "write to them"},
		"a keyring":                   {edit("[handlers]", "[keyring]\npath=/etc/rauc/ca.pem\n[handlers]"), "[keyring]"},
		"an empty keyring":            {edit("[handlers]", "[keyring]\n[handlers]"), "[keyring]"},
		"bundles at every start":      {edit("[handlers]", "[autoinstall]\npath=/var/bundle\n[handlers]"), "[autoinstall]"},
		"a handler":                   {edit("[handlers]", "[handlers]\npost-install=/usr/bin/true"), "post-install"},
		"a group that is there twice": {edit("[handlers]", "[system]\n[handlers]"), "twice"},
		"a key that is there twice":   {edit("compatible=acme-gw", "compatible=acme-gw\ncompatible=acme-gw"), "twice"},
		"a key behind a blank":        {edit("compatible=acme-gw", "compatible=acme-gw\n bootloader=noop"), "blank"},
		"a group behind a tabulator":  {edit("[handlers]", "\t[keyring]\n[handlers]"), "blank"},
		"EFI without a way back":      {edit("bootloader=custom", "bootloader=efi\nefi-use-bootnext=false"), "efi-use-bootnext"},
		"EFI, spelt in another way":   {edit("bootloader=custom", "bootloader=efi\nefi-use-bootnext=0"), "efi-use-bootnext"},
		"no keys of a group":          {edit("[system]", "compatible=acme-gw\n[system]"), "neither"},
		"the rules that come with RAUC": {func(d *testDevice) {
			d.must(os.Remove(d.path("etc/dbus-1/system.d/local.conf")))
			d.write(rules, `<busconfig><!-- any --><policy context="default"><allow send_destination="de.pengutronix.rauc"/></policy></busconfig>`)
		}, "anybody"},
		"rules for a group": {func(d *testDevice) {
			d.write(rules, "<busconfig><policy\n group='admin'><allow\n send_interface='*' send_destination='de.pengutronix.rauc'></allow></policy></busconfig>")
		}, "others than root"},
		"RAUC by another user": {func(d *testDevice) {
			d.write(rules, `<busconfig><policy user="rauc"><allow own="de.pengutronix.rauc"/></policy></busconfig>`)
		}, "others than root"},
		"rules that allow later": {func(d *testDevice) {
			d.write("etc/dbus-1/system.d/more.conf", `<busconfig><policy context="default"><allow send_destination="de.pengutronix.rauc"/></policy></busconfig>`)
		}, "anybody"},
		"rules that take back a part": {func(d *testDevice) {
			d.write("etc/dbus-1/system.d/local.conf", `<busconfig><policy context="default"><deny send_destination="de.pengutronix.rauc" send_member="InstallBundle"/></policy></busconfig>`)
			d.write(rules, `<busconfig><policy context="default"><allow send_destination="de.pengutronix.rauc"/></policy></busconfig>`)
		}, "anybody"},
		"rules that are mandatory": add(rules, `<policy context="mandatory"><allow send_destination="de.pengutronix.rauc"/></policy>`, "anybody"),
		"an interface":             add(more, `<policy context="default"><allow send_interface="de.pengutronix.rauc.Installer"/></policy>`, "anybody"),
		"a member":                 add(more, `<policy context="default"><allow send_member="Mark"/></policy>`, "anybody"),
		"all calls":                add(more, `<policy context="default"><allow send_type="method_call" log="true"/></policy>`, "anybody"),
		"every destination":        add(more, `<policy context="default"><allow send_destination="*"/></policy>`, "anybody"),
		"a prefix":                 add(more, `<policy context="default"><allow send_destination_prefix="de.pengutronix"/></policy>`, "anybody"),
		"a destination in another spelling": add(more,
			`<policy context="default"><allow send_destination="de.pengutronix.&#114;auc"/></policy>`, "anybody"),
		"every destination for a user":       add(more, `<policy user="games"><allow send_destination="*"/></policy>`, "others than root"),
		"all for who sits there":             add(more, `<policy at_console="true"><allow send_type="method_call"/></policy>`, "others than root"),
		"RAUC by everybody":                  add(more, `<policy context="default"><allow own="*"/></policy>`, "others than root"),
		"RAUC by a prefix":                   add(more, `<policy user="games"><allow own_prefix="de.pengutronix.rauc"/></policy>`, "others than root"),
		"rules of this device":               add("etc/dbus-1/system-local.conf", `<policy context="default"><allow send_destination="de.pengutronix.rauc"/></policy>`, "anybody"),
		"the bus's own rules":                add("etc/dbus-1/system.conf", `<policy group="games"><allow send_destination="de.pengutronix.rauc"/></policy>`, "others than root"),
		"its rules by its maker":             add("usr/share/dbus-1/system.conf", `<policy group="games"><allow send_destination="*"/></policy>`, "others than root"),
		"a broken file for RAUC":             add(more, `<policy context="default"><deny send_destination="de.pengutronix.rauc">`, "who may speak to RAUC"),
		"a file that cannot be read":         {func(d *testDevice) { d.must(os.Mkdir(d.path(more), 0o755)) }, "who may speak to RAUC"},
		"every start is good":                {unit("usr/lib/systemd/system"), "masked"},
		"every start of a maker's is good":   {unit("usr/local/lib/systemd/system"), "masked"},
		"every start may be, of a generator": {unit("run/systemd/generator.late"), "masked"},
		"masked, and back again": {func(d *testDevice) {
			link("/dev/null", "usr/lib/systemd/system/"+markGood)(d)
			unit("etc/systemd/system")(d)
		}, "masked"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t)
			c.spoil(d)
			d.wantUnsafe(name, Installer{Root: d.root, Bus: d.path("none"), State: d.path("var/state")}, c.why)
		})
	}
	for name, spoil := range map[string]func(d *testDevice){
		"nothing": func(*testDevice) {},
		"rules that are taken back later": func(d *testDevice) {
			d.write(rules, `<busconfig><policy context="default"><allow send_destination="de.pengutronix.rauc"/></policy></busconfig>`)
		},
		"a rule in a comment": func(d *testDevice) {
			d.write(rules, `<busconfig><!-- <policy user="x"><allow own="de.pengutronix.rauc"/></policy> --></busconfig>`)
		},
		"a rule for another service": func(d *testDevice) {
			d.write(rules, `<busconfig><policy user="x"><allow own="de.pengutronix.raucous"/></policy></busconfig>`)
		},
		"a rule of a file that is gone": link("nowhere", more),
		"a file of many bytes": func(d *testDevice) {
			d.write(more, "<busconfig><!--"+strings.Repeat("x", settingsLimit)+"--></busconfig>")
		},
		"a broken file": func(d *testDevice) { d.write(more, "<busconfig>") },
		"a file in another charset": func(d *testDevice) {
			d.write(more, "<?xml version='1.0' encoding='ISO-8859-1'?><busconfig><!-- \xe4 --></busconfig>")
		},
		"rules that allow, and forbidden anyway": func(d *testDevice) {
			d.write(rules, `<busconfig><policy context="mandatory"><deny send_destination="de.pengutronix.rauc"/></policy></busconfig>`)
			d.write(more, `<busconfig><policy context="default"><allow send_destination="de.pengutronix.rauc"/></policy></busconfig>`)
		},
		"rules of Debian's bus": func(d *testDevice) { d.write("usr/share/dbus-1/system.conf", stockBus) },
		"rules of Debian's services": func(d *testDevice) {
			d.write(more, `<busconfig><policy context="default"><allow send_interface="org.freedesktop.PolicyKit1.AuthenticationAgent"/>
<allow send_destination="org.freedesktop.login1" send_interface="org.freedesktop.login1.Manager" send_member="Inhibit"/></policy>
<policy user="tss"><allow own="com.intel.tss2.Tabrmd"/></policy></busconfig>`)
		},
		"masked": func(d *testDevice) {
			unit("usr/local/lib/systemd/system")(d)
			link("/dev/null", "etc/systemd/system/"+markGood)(d)
		},
		"a folder of RAUC's":       edit("statusfile=", "data-directory="),
		"a comment behind a blank": edit("[handlers]", " # as it is\n \t\n[handlers]"),
		"EFI":                      edit("bootloader=custom", "bootloader=efi\nefi-use-bootnext=true"),
		"spaces around values":     edit("bootloader=custom", "bootloader = custom "),
	} {
		t.Run("fine: "+name, func(t *testing.T) {
			d := newDevice(t)
			spoil(d)
			i := Installer{Root: d.root, Bus: d.path("none"), State: d.path("var/state")}
			if err := i.Bless(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot speak to D-Bus") {
				t.Errorf("got %v, want only that there is no bus", err)
			}
		})
	}
}

// What was blessed once must not run out of tries because of what came to the device later;
// nothing is installed, and a release on trial is left.
func TestUnsafeDevicesGoOn(t *testing.T) {
	d := newDevice(t)
	d.must(d.installer().Bless(t.Context()))
	d.write("etc/dbus-1/system-local.conf", `<busconfig><policy context="default"><allow own="*"/></policy></busconfig>`)
	d.change(settingsFile, "[handlers]", "[keyring]\n[handlers]")
	d.Start()
	i := d.installer()
	st, err := i.Status(t.Context())
	if err != nil || !st.Trial || len(st.Notes) != 1 || !strings.Contains(st.Notes[0], "[keyring]") {
		t.Errorf("the status is %+v, %v, want a trial and a note", st, err)
	}
	d.must(i.Bless(t.Context()))
	if left := d.read("loader/A"); left != "3" {
		t.Errorf("blessed, and %s tries are left, want 3", left)
	}
	r := d.Release("1.1.0+sv1")
	for method, err := range map[string]error{
		"Install": d.install(r),
		"Arm":     i.Arm(t.Context(), r.Manifest),
		"Cancel":  i.Cancel(t.Context()),
	} {
		var no *fota.Refusal
		if !errors.As(err, &no) || no.Code != "settings" {
			t.Errorf("%s: got %v, want a refusal of the settings", method, err)
		}
	}
	t.Run("a release on trial does not", func(t *testing.T) {
		d := newDevice(t)
		d.must(d.installer().Bless(t.Context()))
		d.must(d.install(r))
		d.must(d.installer().Arm(t.Context(), r.Manifest))
		d.Start()
		d.must(os.Remove(d.path("etc/dbus-1/system.d/local.conf")))
		d.write("etc/dbus-1/system-local.conf", `<busconfig><policy context="default"><allow own="*"/></policy></busconfig>`)
		d.wantUnsafe("on trial", d.installer(), "others than root")
	})
	t.Run("nor what was blessed on another side", func(t *testing.T) {
		d := newDevice(t)
		d.must(d.installer().Bless(t.Context()))
		d.change("var/state/state.json", "rootfs.0", "rootfs.1")
		d.change(settingsFile, "[handlers]", "[keyring]\n[handlers]")
		d.wantUnsafe("another side", d.installer(), "[keyring]")
	})
}

// What its slots are like RAUC says itself.
func TestUnsafeSlotsAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		from, to, why string
	}{
		"one device for two slots":       {"dev/appfs-b", "dev/appfs-a", "is the device of two slots"},
		"one device by two names":        {"dev/appfs-b", "dev/../dev/appfs-a", "is the device of two slots"},
		"an image that is unpacked":      {"dev/rootfs-b\ntype=raw", "dev/rootfs-b\ntype=ubivol", "of the type ubivol"},
		"a slot that is not written":     {"dev/rootfs-b\ntype=raw", "dev/rootfs-b\ntype=raw\nreadonly=true", "read-only"},
		"one slot to start":              {"bootname=B\n", "", "0 slots to start"},
		"three slots to start":           {"[slot.spare.0]", "[slot.rootfs.2]\nbootname=C", "2 slots to start"},
		"sides that are not the same":    {"[slot.appfs.1]", "[slot.datafs.1]", "has slots of"},
		"two slots of a class on a side": {"[slot.spare.0]", "[slot.appfs.2]\nparent=rootfs.1", "two slots of the class"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t)
			d.change(settingsFile, c.from, c.to)
			d.wantUnsafe(name, d.installer(), c.why)
		})
	}
	d := newDevice(t)
	i := d.installer()
	_, err := i.Status(t.Context())
	d.must(err)
	d.change(settingsFile, "dev/rootfs-b", "dev/spare")
	d.wantUnsafe("settings that RAUC does not have", i, "not the one in")
}

// Without RAUC on the bus nothing is done.
func TestADeviceWithoutRAUC(t *testing.T) {
	d := newDevice(t)
	i := d.installer()
	d.must(os.Remove(d.path("services/rauc")))
	if err := i.Bless(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot speak to RAUC") {
		t.Errorf("got %v, want that RAUC cannot be spoken to", err)
	}
}

func TestSettingsAreRead(t *testing.T) {
	got, err := parseSettings("# a comment\n\n[system]\ncompatible = a b \nempty=\n[slot.rootfs.0]\ndevice=/dev/x=y\n")
	if want := "map[slot.rootfs.0:map[device:/dev/x=y] system:map[compatible:a b empty:]]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add(goodSettings)
	f.Add("[system]\ncompatible = x\n[a.b]\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSettings(text)
		if err != nil {
			return
		}
		n := 0
		for name, group := range s {
			n += len(group)
			if name == "" || strings.ContainsAny(name, "[]\n") {
				t.Errorf("%q is a group", name)
			}
			for key := range group {
				if key == "" || strings.ContainsAny(key, "=\n") {
					t.Errorf("%q is a key", key)
				}
			}
		}
		if n > strings.Count(text, "\n")+1 {
			t.Errorf("%d keys in %d lines", n, strings.Count(text, "\n")+1)
		}
	})
}

func FuzzBusRules(f *testing.F) {
	f.Add(goodRules)
	f.Add(`<policy user="x"><allow own="de.pengutronix.rauc"/></policy>`)
	f.Add(`<policy context="default"><allow send_destination_prefix="de"/></policy>`)
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := parseRules(text)
		if err != nil {
			return
		}
		for context := range rules.everybody {
			if !strings.Contains(text, "send_") {
				t.Errorf("%q lets everybody send, or not: %v", text, context)
			}
		}
		if rules.others && !strings.Contains(text, "allow") {
			t.Errorf("%q lets others than root speak to RAUC, or be it", text)
		}
	})
}
