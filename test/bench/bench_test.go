package main

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSmoke measures everything once, as shortly as it goes, and asserts of no figure
// more than that it is there: how large it may be is for `make bench`.
func TestSmoke(t *testing.T) {
	m, err := measure(t.Context(), options{agent: filepath.Join("..", "..", "bin", "birthmark"),
		rounds: 1, publishes: 1, enrolments: 1, rest: time.Millisecond, settle: time.Millisecond, readings: 1,
		unit: installerUnit, image: 1 << 20, half: 2 << 20, sparse: 128 << 20})
	if err != nil {
		t.Fatal(err)
	}
	limits := numbers(t)
	for name, measured := range m.figures {
		if !slices.ContainsFunc(limits, func(l limit) bool { return l.name == name }) {
			t.Errorf("%s is measured, and docs/numbers.md has no limit for it", name)
		}
		if measured[0] <= 0 && name != "tpm-commands-message" && name != "disk-written-idle" {
			t.Errorf("%s: got %v, want more than nothing", name, measured)
		}
	}
	if len(m.figures) != 15 {
		t.Errorf("got %d figures, want 15: %v", len(m.figures), m.figures)
	}
	text, _ := report("", limits, m)
	for _, peer := range []string{"mosquitto_pub", "openssl and curl", "strongSwan pki", "mosquitto_sub", "openssl dgst -sha256", "rauc extract, none", "rauc extract, gzip"} {
		if !strings.Contains(text, "| "+peer+" | ") {
			t.Errorf("the report has no line of %s:\n%s", peer, text)
		}
	}
}

var installerUnit = filepath.Join("..", "..", "packaging", "systemd", "birthmark-installer.service")

func numbers(t *testing.T) []limit {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "docs", "numbers.md"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	limits, err := readLimits(f)
	if err != nil {
		t.Fatal(err)
	}
	return limits
}

// TestWhatCounts: the best of what was measured counts, and is held against the limit
// from the side that the table says.
func TestWhatCounts(t *testing.T) {
	const table = `
| name | limit | unit | what | part |
|---|---|---|---|---|
| size | 12 | MiB | of something | 1 |
| speed | 400 | per second | of something else; at least | 2 |
| later | 1.5 | × | of what is not there yet | 3 |
`
	limits, err := readLimits(strings.NewReader(table))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		size, speed []float64
		want        int
	}{
		{[]float64{12}, []float64{400}, 0},
		{[]float64{13, 11, 13}, []float64{399, 401, 1}, 0},
		{[]float64{12.1, 13}, []float64{400}, 1},
		{[]float64{12}, []float64{399, 1}, 1},
		{[]float64{13}, []float64{1}, 2},
	} {
		m := &measurement{figures: figures{"size": c.size, "speed": c.speed}}
		text, exceeded := report("", limits, m)
		if exceeded != c.want || strings.Count(text, "EXCEEDED") != c.want {
			t.Errorf("size %v, speed %v: got %d limits exceeded, want %d:\n%s", c.size, c.speed, exceeded, c.want, text)
		}
		if !strings.Contains(text, "| later | – | ≤ 1.50 × | not measured yet, part 3 |") {
			t.Errorf("the report does not say that later is not measured:\n%s", text)
		}
	}
}

func TestTablesOfLimitsAreRefused(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"nothing", ""},
		{"a head alone", "| name | limit | unit | what | part |\n|---|---|---|---|---|\n"},
		{"a name twice", "| a | 1 | s | x | 1 |\n| a | 2 | s | x | 1 |\n"},
	} {
		if limits, err := readLimits(strings.NewReader(c.text)); err == nil {
			t.Errorf("%s: got %v, want an error", c.name, limits)
		}
	}
}

// TestMetrics reads what go test prints.
func TestMetrics(t *testing.T) {
	got := metrics([]byte("goos: linux\n" +
		"BenchmarkBoot-2        \t      50\t  20000000 ns/op\t         9.000 tpm-commands-boot\n" +
		"BenchmarkEnrolments \t    1200\t   2000000 ns/op\t       512.5 lab-enrolments\n" +
		"PASS\nok  \tbirthmark/pkg/rot/tpm\t3.4s\n"))
	for name, want := range map[string]float64{"tpm-commands-boot": 9, "lab-enrolments": 512.5} {
		if got[name] != want {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
}

// TestBenchmarksAreFound: the packages whose benchmarks docs/numbers.md speaks of.
func TestBenchmarksAreFound(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	got, err := reporting(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"./internal/lab/est", "./pkg/rot/tpm"} {
		if !slices.Contains(got, want) {
			t.Errorf("got %v, want %s among them", got, want)
		}
	}
}

// TestWatch tells the messages of a session from those of the one before.
func TestWatch(t *testing.T) {
	const log = `1700000000: mosquitto version 2.0.11 starting
1700000000: mosquitto version 2.0.11 running
1700000001: New client connected from 127.0.0.1:4711 as dev-1 (p2, c0, k60, u'dev-1').
1700000001: Received PUBLISH from dev-1 (d0, q1, r1, m2, 'birthmark/v1/d/dev-1/state', ... (300 bytes))
1700000001: Sending PUBACK to dev-1 (m2, rc0)
1700000001: Sending PUBACK to dev-1 (m3, rc0)
1700000002: Client dev-1 disconnected.
1700000003: New client connected from 127.0.0.1:4712 as dev-1 (p2, c0, k60, u'dev-1').
1700000003: Sending PUBACK to dev-1 (m1, rc0)
`
	b := &broker{acks: make(chan ack, 10)}
	running := make(chan struct{})
	b.watch(bufio.NewScanner(strings.NewReader(log)), running)
	select {
	case <-running:
	default:
		t.Error("the broker does not count as running")
	}
	close(b.acks)
	var got []int
	for a := range b.acks {
		if a.client != "dev-1" {
			t.Errorf("got an ack of %q", a.client)
		}
		got = append(got, a.n)
	}
	if want := []int{1, 2, 1}; !slices.Equal(got, want) {
		t.Errorf("got acks %v, want %v", got, want)
	}
}

// TestRenew keeps what people wrote, and replaces what the program did.
func TestRenew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bench.md")
	if err := os.WriteFile(file, []byte("# Head\n"+figuresBegin+"\nold\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"new\n", "newer\n"} {
		if err := renew(file, text); err != nil {
			t.Fatal(err)
		}
		if got, want := read(t, file), "# Head\n"+figuresBegin+"\n"+text; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if err := os.WriteFile(file, []byte("# Head\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := renew(file, "new\n"); err == nil || read(t, file) != "# Head\n" {
		t.Errorf("a page without the line: got %q (%v), want it left alone and an error", read(t, file), err)
	}
	if page := read(t, filepath.Join("..", "..", "docs", "bench.md")); !strings.Contains(page, figuresBegin) {
		t.Errorf("docs/bench.md has no line %q", figuresBegin)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
