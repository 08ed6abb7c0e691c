package config

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Whatever a file holds: no panic, an Error with a line of that file, or settings
// that are shown and read again unchanged.
func FuzzLayer(f *testing.F) {
	for _, seed := range []string{
		complete,
		"[est]\nulr = 'x'",
		"est.url = 'x'\nest.label = \"\\u00e9\"\n[telemetry]\nlabels = { a = '1', 'b c' = \"\"\"two\nlines\"\"\" }",
		"[broker]\nurls = [\n'a', # one\n\"b\",\n]\nkeepalive = '1h'",
		"[[est]]\n[log.level]\n",
		"a." + strings.Repeat("b.", 20),
		"x = [[[[[[[[[[[[1]]]]]]]]]]]]",
		"x = '''\n[[[[[[[[[[[[\n'''",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		l := &Loaded{Config: Default(), origins: map[string]origin{}}
		err := l.layer("f.toml", "/dir", text)
		var e *Error
		if err != nil {
			if lines := bytes.Count(text, []byte{'\n'}) + 1; !errors.As(err, &e) || e.Msg == "" || e.Line > lines {
				t.Fatalf("%v in %d lines", err, lines)
			}
			return
		}
		var shown bytes.Buffer
		if err := l.Show(&shown, false); err != nil {
			t.Fatal(err)
		}
		again := &Loaded{Config: Default(), origins: map[string]origin{}}
		if err := again.layer("shown.toml", "/dir", shown.Bytes()); err != nil {
			t.Fatalf("%v in\n%s", err, shown.String())
		}
		if l.Config.Telemetry.Labels == nil {
			l.Config.Telemetry.Labels = map[string]string{} // shown as {}
		}
		if l.Config.Broker.URLs == nil {
			l.Config.Broker.URLs = []string{} // shown as []
		}
		if diff := cmp.Diff(l.Config, again.Config); diff != "" {
			t.Fatalf("%s\nfrom\n%s", diff, shown.String())
		}
	})
}
