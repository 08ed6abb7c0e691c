package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// goBenchmarks runs, once, the benchmarks of all packages below the present folder
// that report a metric of their own, and adds what they reported to f.
func goBenchmarks(ctx context.Context, f figures) error {
	packages, err := reporting(".")
	if err != nil {
		return err
	}
	// Two of them at once would measure each other: with -bench, go test does not.
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-run", "^$", "-bench", "."}, packages...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("cannot run the Go benchmarks: %w\n%s", err, out)
	}
	for name, value := range metrics(out) {
		f.add(name, value)
	}
	return nil
}

// reporting is every package below dir with a test file that reports a metric.
func reporting(dir string) ([]string, error) {
	var packages []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, []byte("b.ReportMetric(")) {
			packages = append(packages, "./"+filepath.Dir(path))
		}
		return err
	})
	slices.Sort(packages)
	return slices.Compact(packages), err
}

// metrics is what the benchmarks whose output is text reported. A benchmark's line
// is its name, how often it ran, then pairs of a value and its unit.
func metrics(text []byte) map[string]float64 {
	found := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(line, "Benchmark") {
			continue
		}
		for pair := range slices.Chunk(fields[2:], 2) {
			if value, err := strconv.ParseFloat(pair[0], 64); err == nil && len(pair) == 2 {
				found[pair[1]] = value
			}
		}
	}
	return found
}
