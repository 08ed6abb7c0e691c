package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// figuresBegin is the line of docs/bench.md below which everything is written anew.
const figuresBegin = "<!-- make bench UPDATE=1 writes what follows -->\n"

// report is Markdown: what was held against the limits, and how the peers did. It
// also says how many limits are exceeded.
func report(about string, limits []limit, m *measurement) (text string, exceeded int) {
	var b strings.Builder
	b.WriteString(about)
	b.WriteString("\n| name | figure | limit | |\n|---|---:|---:|---|\n")
	var held int
	for _, l := range limits {
		figure, verdict := "–", "not measured yet, part "+l.part
		if measured := m.figures[l.name]; len(measured) > 0 {
			best := l.best(measured)
			figure, verdict = number(best), "held"
			if l.exceeded(best) {
				verdict = "**EXCEEDED**"
				exceeded++
			} else {
				held++
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", l.name, figure, l, verdict)
	}
	fmt.Fprintf(&b, "\n%d held, %d exceeded, %d not measured yet.\n", held, exceeded, len(limits)-held-exceeded)

	for _, what := range append([]contest{
		{what: "start to acknowledged publish", lanes: m.publishing},
		{what: "enrolment", lanes: m.enrolling},
	}, m.firmware...) {
		fmt.Fprintf(&b, "\n| %s | best | median | against it |\n|---|---:|---:|---:|\n", what.what)
		for i, l := range what.lanes {
			against := ""
			if i > 0 {
				against = number(what.lanes[0].ratio(l)) + " ×"
			}
			fmt.Fprintf(&b, "| %s | %.1f ms | %.1f ms | %s |\n", l.name, ms(l.best()), ms(l.median()), against)
		}
	}
	b.WriteString("\n| connected and idle | RSS | PSS | wakes a minute | CPU a minute |\n|---|---:|---:|---:|---:|\n")
	for _, r := range m.resting {
		best := r.best()
		fmt.Fprintf(&b, "| %s | %.1f MiB | %.1f MiB | %.0f | %.1f ms |\n", r.name, best.rss, best.pss, best.wakes, best.cpu)
	}
	return b.String(), exceeded
}

// describe says on what kind of machine and with which programs this is, in words
// that fit many machines.
func describe(ctx context.Context, agent string) (string, error) {
	version, err := exec.CommandContext(ctx, agent, "version").Output()
	if err != nil {
		return "", fmt.Errorf("%s version: %w", agent, err)
	}
	packages, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Package} ${Version}\n",
		"mosquitto", "mosquitto-clients", "openssl", "curl", "strongswan-pki", "swtpm", "rauc", "squashfs-tools").Output()
	if err != nil {
		return "", fmt.Errorf("cannot ask for the peers' versions: %w", err)
	}
	system, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", err
	}
	name := "Linux"
	for line := range strings.Lines(string(system)) {
		if value, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			name = strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	peers := strings.ReplaceAll(strings.TrimSpace(string(packages)), "\n", ", ")
	return fmt.Sprintf("On %s, %d cores of %s, load average %s: %s. Peers: %s.\n", name, runtime.NumCPU(), runtime.GOARCH,
		strings.Fields(string(load))[0], strings.TrimSpace(string(version)), peers), nil
}

// renew writes text below the line figuresBegin of a file.
func renew(file, text string) error {
	page, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, _, found := strings.Cut(string(page), figuresBegin)
	if !found {
		return fmt.Errorf("%s has no line %q", file, strings.TrimSpace(figuresBegin))
	}
	return os.WriteFile(file, []byte(head+figuresBegin+"\n"+text), 0o644)
}
