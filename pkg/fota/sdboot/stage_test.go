package sdboot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot/pe"
	"birthmark/pkg/fota/sdboot/pe/petest"
)

// refusedFor is the code of a refusal at the boot stage, "" for any other error.
func refusedFor(err error) string {
	var r *fota.Refusal
	if errors.As(err, &r) && r.Stage == fota.StageBoot {
		return r.Code
	}
	return ""
}

func TestStageRefuses(t *testing.T) {
	osrel := petest.Section{Name: ".osrel", Text: "IMAGE_VERSION=2.0.0\n"}
	cmdline := petest.Section{Name: ".cmdline", Text: "quiet init=/sbin/init"}
	linux := petest.Section{Name: ".linux", Text: "kernel"}
	without := func(name string) []byte {
		var sections []petest.Section
		for _, s := range []petest.Section{osrel, cmdline, linux} {
			if s.Name != name {
				sections = append(sections, s)
			}
		}
		return petest.Program(sections...)
	}
	line := func(text string) []byte {
		return petest.Program(osrel, petest.Section{Name: ".cmdline", Text: text}, linux)
	}
	for _, c := range []struct {
		name    string
		uki     []byte
		version string
		code    string // "" for none
	}{
		{"what is right", without(""), "2.0.0", ""},
		{"one that is named by it", petest.UKI("2.0.0+sv6"), "2.0.0+sv6", ""},
		{"text", []byte("not a program"), "2.0.0", "pe"},
		{"nothing", nil, "2.0.0", "pe"},
		{"a program that is cut short", without("")[:1200], "2.0.0", "pe"},
		{"no kernel", without(".linux"), "2.0.0", "uki"},
		{"no os-release", without(".osrel"), "2.0.0", "uki"},
		{"no command line", without(".cmdline"), "2.0.0", "uki"},
		{"another version", petest.UKI("2.0.1"), "2.0.0", "version"},
		{"a version that begins like it", petest.UKI("2.0.01"), "2.0.0", "version"},
		{"another security version", petest.UKI("2.0.0+sv6"), "2.0.0+sv5", "version"},
		{"two versions", petest.Program(petest.Section{Name: ".osrel", Text: "IMAGE_VERSION=1.0.0\nIMAGE_VERSION=2.0.0\n"}, cmdline, linux), "2.0.0", "version"},
		{"no version", petest.Program(petest.Section{Name: ".osrel", Text: "ID=test\n"}, cmdline, linux), "2.0.0", "version"},
		{"the version that runs", petest.UKI("1.0.0"), "1.0.0", "version"},
		{"a version that is a path", petest.UKI("2.0.0"), "../2.0.0", "version"},
		{"a version that is none", petest.UKI("new"), "new", "version"},
		{"a command line without init=", line("quiet root=/dev/sda1"), "2.0.0", "init"},
		{"a command line with an init= of nothing", line("init= quiet"), "2.0.0", "init"},
		{"a command line with another init= behind it", line("init=/sbin/init init=shell"), "2.0.0", "init"},
		{"a command line with another argument's init=", line("rdinit=/sbin/init"), "2.0.0", "init"},
	} {
		d := newDevice(t)
		_, err := d.loader().Stage(t.Context(), bytes.NewReader(c.uki), int64(len(c.uki)), c.version)
		if (err == nil) != (c.code == "") || refusedFor(err) != c.code {
			t.Errorf("%s: got %v, want a refusal for %q", c.name, err, c.code)
		}
		if c.code != "" {
			d.wantFiles(running)
		}
	}
	l := newDevice(t).loader()
	if _, err := l.Stage(t.Context(), iotest.ErrReader(io.EOF), pe.SizeLimit+1, "2.0.0"); refusedFor(err) != "pe" {
		t.Errorf("more than the limit: got %v, want a refusal", err)
	}
}

// What is not the release's fault is no refusal, and leaves nothing behind.
func TestStageInTrouble(t *testing.T) {
	uki := petest.UKI("2.0.0")
	size := int64(len(uki))
	broken := errors.New("broken")
	canceled, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	for _, c := range []struct {
		name string
		ctx  context.Context
		r    io.Reader
		free int64
		want error // nil for any
	}{
		{"too little room", t.Context(), bytes.NewReader(uki), size + reserve - 1, ErrSpace},
		{"a source that fails", t.Context(), io.MultiReader(bytes.NewReader(uki[:700]), iotest.ErrReader(broken)), 1 << 30, broken},
		{"a source that fails at its end", t.Context(), io.MultiReader(bytes.NewReader(uki), iotest.ErrReader(broken)), 1 << 30, broken},
		{"a source that ends", t.Context(), bytes.NewReader(uki[:700]), 1 << 30, io.ErrUnexpectedEOF},
		{"a source that goes on", t.Context(), io.MultiReader(bytes.NewReader(uki), strings.NewReader("more")), 1 << 30, nil},
		{"a context that is done", canceled, bytes.NewReader(uki), 1 << 30, broken},
	} {
		d := newDevice(t)
		l := d.loader()
		l.free = func(string) (int64, error) { return c.free, nil }
		if _, err := l.Stage(c.ctx, c.r, size, "2.0.0"); err == nil || c.want != nil && !errors.Is(err, c.want) || refusedFor(err) != "" {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
		d.wantFiles(running)
	}
}

// Staged again, a release takes the place of what an earlier attempt left.
func TestStageAgain(t *testing.T) {
	d := newDevice(t)
	d.put(draft, []byte("half of"))
	d.put(".birthmark_1.5.0.new", []byte("an older attempt"))
	d.put(armed, nil)
	l := d.loader()
	d.stage(l, "2.0.0")
	d.must(l.Arm("2.0.0", d.stage(l, "2.0.0")))
	d.wantFiles(running, armed)

	d.put("birthmark_0.9.0+3.efi", petest.UKI("0.9.0"))
	uki := petest.UKI("3.0.0")
	if _, err := l.Stage(t.Context(), bytes.NewReader(uki), int64(len(uki)), "3.0.0"); err == nil {
		t.Error("staged while other releases can be started from the slot")
	}
}
