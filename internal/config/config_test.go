package config

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite docs/configuration.md")

// tree makes files, and links where the text begins with "-> ", below a new folder.
func tree(tb testing.TB, files map[string]string) (root string) {
	tb.Helper()
	root = tb.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			tb.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o600)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	return root
}

func mustLoad(tb testing.TB, o Options) *Loaded {
	tb.Helper()
	l, err := Load(o)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func TestNothingConfigured(t *testing.T) {
	l := mustLoad(t, Options{Root: t.TempDir()})
	if diff := cmp.Diff(Default(), l.Config); diff != "" {
		t.Error(diff)
	}
	if got := l.Origin("tpm.address"); got != "default" {
		t.Errorf("origin %q, want default", got)
	}
}

func TestLayers(t *testing.T) {
	root := tree(t, map[string]string{
		"usr/lib/birthmark/birthmark.toml":      "[est]\nurl = 'https://image'\nlabel = 'image'\n[broker]\nurls = ['mqtts://a:1', 'mqtts://b:1']\n[telemetry.labels]\na = '1'\nb = '1'\n",
		"usr/lib/birthmark/conf.d/20-more.toml": "[est]\nlabel = 'drop-in'\nusername = 'drop-in'\n[log]\nlevel = 'error'\n",
		"usr/lib/birthmark/conf.d/30-gone.toml": "[log]\nlevel = 'debug'\n",
		"usr/lib/birthmark/conf.d/README":       "not read [",
		"etc/birthmark/birthmark.toml":          "# the administrator\n\n[est]\nurl = 'https://etc'\nanchors = 'certs/root.pem'\n\n[broker]\nurls = ['mqtts://c:1']\nkeepalive = '5m'\n[telemetry]\nlabels = { b = '2', c = '2' }\n",
		"etc/birthmark/conf.d/10-first.toml":    "[est]\nusername = 'first'\n",
		"etc/birthmark/conf.d/20-second.toml":   "est.username = 'second'\ndevice.state = '/elsewhere'\n",
		"etc/birthmark/conf.d/30-gone.toml":     "-> /dev/null",
	})
	l := mustLoad(t, Options{Root: root, Env: []string{
		"BIRTHMARK_TPM__ADDRESS=unix:/run/tpm", "BIRTHMARK_TELEMETRY__LABELS=c=3, d=x=y", "BIRTHMARK_TELEMETRY__INTERVAL=90s",
		"HOME=/root", "BIRTHMARK_DEBUG=not a setting", "BIRTHMARKS__X=not ours", "broken",
	}})
	want := Default()
	want.Device.State = "/elsewhere"
	want.TPM.Address = "unix:/run/tpm"
	want.EST = EST{URL: "https://etc", Label: "drop-in", Username: "second", Anchors: filepath.Join(root, "etc/birthmark/certs/root.pem")}
	want.Broker.URLs, want.Broker.KeepAlive = []string{"mqtts://c:1"}, Duration(5*time.Minute)
	want.Telemetry = Telemetry{Interval: Duration(90 * time.Second), Labels: map[string]string{"a": "1", "b": "2", "c": "3", "d": "x=y"}}
	want.Log.Level = "error"
	if diff := cmp.Diff(want, l.Config); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
	for name, want := range map[string]string{
		"est.url":            "/etc/birthmark/birthmark.toml:4",
		"est.label":          "/usr/lib/birthmark/conf.d/20-more.toml:2",
		"est.username":       "/etc/birthmark/conf.d/20-second.toml:1",
		"broker.urls":        "/etc/birthmark/birthmark.toml:8",
		"tpm.address":        "BIRTHMARK_TPM__ADDRESS",
		"telemetry.labels":   "BIRTHMARK_TELEMETRY__LABELS",
		"telemetry.interval": "BIRTHMARK_TELEMETRY__INTERVAL",
		"log.level":          "/usr/lib/birthmark/conf.d/20-more.toml:5",
		"birth.mode":         "default",
	} {
		if got := strings.TrimPrefix(l.Origin(name), root); got != want {
			t.Errorf("origin of %s: got %s, want %s", name, got, want)
		}
	}
	if len(l.Files) != 5 {
		t.Errorf("read %q, want five files", l.Files)
	}
}

func TestMaskedMainFile(t *testing.T) {
	root := tree(t, map[string]string{
		"usr/lib/birthmark/birthmark.toml": "[log]\nlevel = 'debug'\n",
		"etc/birthmark/birthmark.toml":     "-> /dev/null",
	})
	if l := mustLoad(t, Options{Root: root}); l.Config.Log.Level != "info" || len(l.Files) != 0 {
		t.Errorf("level %q from %q, want the default from nowhere", l.Config.Log.Level, l.Files)
	}
}

func TestOneFileAlone(t *testing.T) {
	root := tree(t, map[string]string{
		"etc/birthmark/birthmark.toml": "[log]\nlevel = 'debug'\n",
		"lab/birthmark.toml":           "[device]\nstate = 'state'\n",
	})
	l := mustLoad(t, Options{Root: root, File: filepath.Join(root, "lab/birthmark.toml"), Env: []string{"BIRTHMARK_DEVICE__ID=dev-1"}})
	if want := filepath.Join(root, "lab/state"); l.Config.Device.State != want || l.Config.Device.ID != "dev-1" || l.Config.Log.Level != "info" {
		t.Errorf("got %+v, level %s, want state %s, id dev-1, level info", l.Config.Device, l.Config.Log.Level, want)
	}
	var e *Error
	if _, err := Load(Options{File: filepath.Join(root, "none.toml")}); !errors.As(err, &e) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// Every message begins with file and line, and says what to do.
func TestMistakesInFiles(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"misspelled setting", "[est]\n\nulr = 'x'", "3: no setting ulr in [est]: did you mean url?"},
		{"wrong case", "[est]\nURL = 'x'", "2: no setting URL in [est]: did you mean url?"},
		{"setting of another section", "[device]\nkeepalive = '5s'", "2: no setting keepalive in [device]: it belongs into [broker]"},
		{"setting of two other sections", "[tpm]\nanchors = 'x'", "2: no setting anchors in [tpm]: it belongs into [birth] or [est] or [broker]"},
		{"setting of nothing", "[log]\ncolour = 'x'", "2: no setting colour in [log]: there are level"},
		{"misspelled section", "\n[brith]\nurl = 'x'", "2: no section [brith]: did you mean [birth]?"},
		{"section of nothing", "[cooking]\nurl = 'x'", "1: no section [cooking]: there are device, tpm, birth, est, broker, firmware, telemetry, doors, metrics, log"},
		{"setting without a section", "url = 'x'", "1: no section [url]: there are device, tpm, birth, est, broker, firmware, telemetry, doors, metrics, log"},
		{"section as a value", "est = 'x'", "1: est is a section: write [est]"},
		{"section as a list", "[[est]]\nurl = 'x'", "1: est is a section: write [est]"},
		{"first mistake first", "[log]\nlevel = 'info'\n[est]\nx1 = 1\n[tpm]\ny1 = 2", "4: no setting x1 in [est]: there are url, label, anchors, anchor_sha256, username, password_file"},
		{"number for text", "[device]\nid = 7", "2: id must be text in quotes"},
		{"text for list", "[broker]\nurls = 'mqtts://a:1'", `2: urls must be a list of texts, ["…", "…"]`},
		{"list of numbers", "[broker]\nurls = [1]", `2: urls must be a list of texts, ["…", "…"]`},
		{"duration without unit", "[broker]\nkeepalive = 60", `2: "60" is no duration: write a number with its unit in quotes, such as "60s" or "5m"`},
		{"duration of nothing", "[broker]\nkeepalive = 'long'", `2: "long" is no duration: write a number with its unit in quotes, such as "60s" or "5m"`},
		{"label that is a number", "[telemetry.labels]\nfloor = 3", `1: labels must be a table of texts, { name = "…" }`},
		{"labels that are text", "[telemetry]\nlabels = 'x'", `2: labels must be a table of texts, { name = "…" }`},
		{"duration that is a table", "[log]\n[broker.keepalive]\nx = 1", "2: keepalive must be text in quotes"},
		{"twice", "[log]\nlevel = 'info'\nlevel = 'warn'", "3: Key 'log.level' has already been defined."},
		{"no TOML", "[log]\nlevel: info", "2: expected '.' or '=', but got ':' instead"},
		{"no end", "[log]\nlevel = 'inf", "2: unexpected EOF; expected \"'\""},
		{"no text", "\x00\x01", "1: files cannot contain NULL bytes; probably using UTF-16; TOML files must be UTF-8"},
		{"lists in lists", "[log]\nlevel = " + strings.Repeat("[", 30000), "2: nested more than 8 deep: no setting is"},
		{"tables in tables", "\n" + strings.Repeat("a={", 20000), "2: nested more than 8 deep: no setting is"},
		{"a key of many parts", "[log]\n\n" + strings.Repeat("a.", 20000), "3: nested more than 8 deep: no setting is"},
		{"too big", strings.Repeat("# comment\n", 7000), " 70000 bytes, limit 65536"},
	} {
		file := filepath.Join(tree(t, map[string]string{"birthmark.toml": tc.text}), "birthmark.toml")
		l, err := Load(Options{File: file})
		var e *Error
		if !errors.As(err, &e) || l != nil {
			t.Errorf("%s: got %v, want an Error", tc.name, err)
			continue
		}
		if got := strings.TrimPrefix(err.Error(), file+":"); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
	}
}

func TestMistakesInTheEnvironment(t *testing.T) {
	for env, want := range map[string]string{
		"BIRTHMARK_EST__ULR=x":            "BIRTHMARK_EST__ULR: no setting ulr in [est]: did you mean url?",
		"BIRTHMARK_ETS__URL=x":            "BIRTHMARK_ETS__URL: no section [ets]: did you mean [est]?",
		"BIRTHMARK_est__url=x":            "BIRTHMARK_est__url: no setting url in [est]: did you mean url?",
		"BIRTHMARK_BROKER__KEEPALIVE=1":   `BIRTHMARK_BROKER__KEEPALIVE: "1" is no duration: write a number with its unit in quotes, such as "60s" or "5m"`,
		"BIRTHMARK_TELEMETRY__LABELS=x,y": `BIRTHMARK_TELEMETRY__LABELS: "x" is not of the form name=value`,
	} {
		_, err := Load(Options{Root: t.TempDir(), Env: []string{env}})
		if err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", env, err, want)
		}
	}
}

func TestTooManyDropIns(t *testing.T) {
	files := map[string]string{}
	for n := range dropInLimit + 1 {
		files[fmt.Sprintf("etc/birthmark/conf.d/%d.toml", n)] = ""
	}
	if _, err := Load(Options{Root: tree(t, files)}); err == nil || !strings.Contains(err.Error(), "65 files, limit 64") {
		t.Errorf("got %v, want the limit", err)
	}
}

// What is shown is what is loaded, in text that can be loaded again.
func TestShow(t *testing.T) {
	file := filepath.Join(tree(t, map[string]string{"my.toml": `
[device]
id = "dev-1"
[broker]
urls = ["mqtts://a:1", "mqtts://[::1]:2"]
[telemetry]
labels = { site = "Köln \"Süd\"\t\u0007", line = "4" }
interval = "1h30m"
`}), "my.toml")
	l := mustLoad(t, Options{File: file, Env: []string{"BIRTHMARK_LOG__LEVEL=debug"}})
	for _, origin := range []bool{false, true} {
		var shown bytes.Buffer
		if err := l.Show(&shown, origin); err != nil {
			t.Fatal(err)
		}
		second := filepath.Join(tree(t, map[string]string{"shown.toml": shown.String()}), "shown.toml")
		if diff := cmp.Diff(l.Config, mustLoad(t, Options{File: second}).Config); diff != "" {
			t.Errorf("loaded again, it differs:\n%s\n%s", diff, shown.String())
		}
		for _, want := range []string{
			"id = \"dev-1\" # " + file + ":3\n",
			"level = \"debug\" # BIRTHMARK_LOG__LEVEL\n",
			"mode = \"password\" # default\n",
		} {
			if !origin {
				want, _, _ = strings.Cut(want, " #")
				want += "\n"
			}
			if !strings.Contains(shown.String(), want) {
				t.Errorf("origin %v: %q is not in\n%s", origin, want, shown.String())
			}
		}
	}
}

// TestDoc keeps docs/configuration.md equal to the code.
func TestDoc(t *testing.T) {
	const doc = "../../docs/configuration.md"
	var want bytes.Buffer
	if err := Doc(&want); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(doc, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%s differs from the settings; run go test ./internal/config -update and look at the difference", doc)
	}
}

func TestEverySettingIsDocumented(t *testing.T) {
	for _, sec := range sections {
		if sec.name == "" || sec.doc == "" {
			t.Errorf("section %+v", sec)
		}
		for _, s := range sec.settings {
			c := Default()
			if s.key == "" || !strings.HasSuffix(s.doc, ".") {
				t.Errorf("%s: documented as %q", s.name(), s.doc)
			}
			if s.path && s.field(&c).Kind().String() != "string" {
				t.Errorf("%s is no path", s.name())
			}
			s.value(&c)         // panics on a type
			_ = s.parse(&c, "") // that it does not know
		}
	}
}
