package metrics_test

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "birthmark/internal/metrics"
	"birthmark/internal/metrics/metricstest"
)

func TestTextIsWhatPrometheusReads(t *testing.T) {
	text, err := Text(
		Family{"m_info", Gauge, "A help with a \\ and\na second line.", []Sample{{[]Label{{"version", "1 \"x\"\n\\"}, {"arch", "a\xffb"}}, 1}}},
		Family{"m_total", Counter, "Counted.", []Sample{{[]Label{{"kind", "a"}}, 0}, {[]Label{{"kind", "b"}}, 1 << 53}}},
		Family{"m_seconds", Gauge, "Measured.", One(-0.25)},
		Family{"m_none", Gauge, "Nothing to say.", nil},
		Family{"m_odd", Gauge, "Not a number.", One(math.Inf(1))},
	)
	if err != nil {
		t.Fatal(err)
	}
	const want = `# HELP m_info A help with a \\ and\na second line.
# TYPE m_info gauge
m_info{arch="a�b",version="1 \"x\"\n\\"} 1
# HELP m_total Counted.
# TYPE m_total counter
m_total{kind="a"} 0
m_total{kind="b"} 9.007199254740992e+15
# HELP m_seconds Measured.
# TYPE m_seconds gauge
m_seconds -0.25
# HELP m_none Nothing to say.
# TYPE m_none gauge
# HELP m_odd Not a number.
# TYPE m_odd gauge
m_odd +Inf
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Error(diff)
	}
	values, err := metricstest.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if got := values[`m_total{kind="b"}`]; len(values) != 5 || got != 1<<53 {
		t.Errorf("read back %v", values)
	}
}

func TestTextRefusesWhatPrometheusWould(t *testing.T) {
	for _, tc := range []struct {
		name     string
		families []Family
	}{
		{"name with a space", []Family{{"a b", Gauge, "x", nil}}},
		{"no name", []Family{{"", Gauge, "x", nil}}},
		{"counter without _total", []Family{{"a", Counter, "x", nil}}},
		{"gauge with _total", []Family{{"a_total", Gauge, "x", nil}}},
		{"family twice", []Family{{"a", Gauge, "x", nil}, {"a", Gauge, "y", nil}}},
		{"series twice", []Family{{"a", Gauge, "x", []Sample{{}, {}}}}},
		{"series twice, labels turned", []Family{{"a", Gauge, "x", []Sample{
			{Labels: []Label{{"x", "1"}, {"y", "2"}}}, {Labels: []Label{{"y", "2"}, {"x", "1"}}}}}}},
		{"label twice", []Family{{"a", Gauge, "x", []Sample{{Labels: []Label{{"x", "1"}, {"x", "2"}}}}}}},
		{"label with a dash", []Family{{"a", Gauge, "x", []Sample{{Labels: []Label{{"x-y", "1"}}}}}}},
	} {
		if text, err := Text(tc.families...); err == nil {
			t.Errorf("%s: written as\n%s", tc.name, text)
		}
	}
}

// The reader of the tests is strict, or they would say nothing.
func TestTheReaderRefuses(t *testing.T) {
	const good = "# HELP a x\n# TYPE a gauge\na 1\n"
	if _, err := metricstest.Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"no end of line":        strings.TrimSuffix(good, "\n"),
		"no HELP":               "# TYPE a gauge\na 1\n",
		"no TYPE":               "# HELP a x\na 1\n",
		"TYPE before HELP":      "# TYPE a gauge\n# HELP a x\na 1\n",
		"family twice":          good + good,
		"series twice":          good + "a 2\n",
		"sample of another":     good + "b 2\n",
		"blank line":            good + "\n",
		"two spaces":            "# HELP a x\n# TYPE a gauge\na  1\n",
		"label without quotes":  "# HELP a x\n# TYPE a gauge\na{b=c} 1\n",
		"text for a number":     "# HELP a x\n# TYPE a gauge\na one\n",
		"negative counter":      "# HELP a_total x\n# TYPE a_total counter\na_total -1\n",
		"counter by a bad name": "# HELP a x\n# TYPE a counter\na 1\n",
	} {
		if _, err := metricstest.Parse([]byte(text)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
