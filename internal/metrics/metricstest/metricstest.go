// Package metricstest reads the text format of Prometheus, version 0.0.4, for tests.
// It knows the grammar from its description and nothing of how package metrics
// writes, and is strict where Prometheus is lenient.
package metricstest

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

var (
	helpLine   = regexp.MustCompile(`^# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) ((?:[^\\\n]|\\\\|\\n)+)$`)
	typeLine   = regexp.MustCompile(`^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge)$`)
	sampleLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{` + label + `(?:,` + label + `)*\})? (\S+)$`)
)

const label = `[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\n|\\")*"`

// Parse returns the value of every series, NAME or NAME{LABELS} as it stands in
// text. Each family has one HELP and one TYPE line, in this order, then its
// samples; each series comes once; a counter's name ends in _total and its value is
// not negative.
func Parse(text []byte) (map[string]float64, error) {
	values := map[string]float64{}
	families := map[string]bool{}
	var help, family, kind string
	body, ok := strings.CutSuffix(string(text), "\n")
	if !ok {
		return nil, fmt.Errorf("the last line has no end")
	}
	for i, line := range strings.Split(body, "\n") {
		fail := func(why string) (map[string]float64, error) {
			return nil, fmt.Errorf("line %d, %q: %s", i+1, line, why)
		}
		if m := helpLine.FindStringSubmatch(line); m != nil {
			if families[m[1]] || help != "" {
				return fail("a HELP line in the wrong place")
			}
			help = m[1]
			continue
		}
		if m := typeLine.FindStringSubmatch(line); m != nil {
			if m[1] != help {
				return fail("a TYPE line that does not follow its HELP line")
			}
			if (m[2] == "counter") != strings.HasSuffix(m[1], "_total") {
				return fail("the name does not say whether it is a counter")
			}
			help, family, kind = "", m[1], m[2]
			families[family] = true
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			return fail("not a line of the format")
		}
		value, err := strconv.ParseFloat(m[3], 64)
		_, twice := values[m[1]+m[2]]
		switch {
		case err != nil:
			return fail("no number")
		case m[1] != family || help != "":
			return fail("a sample outside of its family")
		case twice:
			return fail("a series that was there before")
		case kind == "counter" && !(value >= 0):
			return fail("a counter below 0")
		}
		values[m[1]+m[2]] = value
	}
	return values, nil
}
