// Package metrics writes numbers in the text format that Prometheus reads,
// version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats):
//
//	# HELP birthmark_outbox_messages Messages that wait for the broker.
//	# TYPE birthmark_outbox_messages gauge
//	birthmark_outbox_messages 3
//
// It keeps no numbers: who has them says them, all at once, to [Text].
package metrics

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ContentType is the media type of what [Text] returns.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// A Kind is what a number does over time.
type Kind string

const (
	Gauge   Kind = "gauge"   // goes up and down
	Counter Kind = "counter" // goes up only, or begins again at 0; its name ends in _total
)

// A Family is one metric with all its values.
type Family struct {
	Name    string
	Kind    Kind
	Help    string // one sentence
	Samples []Sample
}

// A Sample is one value. Samples of one Family differ in their labels.
type Sample struct {
	Labels []Label
	Value  float64
}

// A Label tells apart the samples of a Family. Its value can be any text.
type Label struct{ Name, Value string }

// One is a Family's only sample.
func One(value float64) []Sample { return []Sample{{Value: value}} }

// Bool is 1 or 0.
func Bool(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

var (
	helpText  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	valueText = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// isName is narrower than Prometheus: no colons, no capitals.
func isName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	return s != "" && strings.Contains(letters, s[:1]) && strings.Trim(s, letters+"0123456789_") == ""
}

// Text writes families in their order. An error is a mistake of the caller: a name
// that Prometheus would not take, or something said twice.
func Text(families ...Family) ([]byte, error) {
	var b bytes.Buffer
	said := map[string]bool{}
	for _, f := range families {
		if !isName(f.Name) || said[f.Name] || (f.Kind == Counter) != strings.HasSuffix(f.Name, "_total") {
			return nil, fmt.Errorf("cannot write the metric %q: not a name for a %s, or written before", f.Name, f.Kind)
		}
		said[f.Name] = true
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", f.Name, helpText.Replace(strings.ToValidUTF8(f.Help, "\ufffd")), f.Name, f.Kind)
		for _, s := range f.Samples {
			series, err := f.series(s.Labels)
			if err == nil && said[series+" "] { // with a space, which no name of a family has
				err = fmt.Errorf("cannot write %s: written before", series)
			}
			if err != nil {
				return nil, err
			}
			said[series+" "] = true
			fmt.Fprintf(&b, "%s %s\n", series, strconv.FormatFloat(s.Value, 'g', -1, 64)) // NaN, +Inf, -Inf as Prometheus has them
		}
	}
	return b.Bytes(), nil
}

// series is the name of f with labels, which are sorted so that equal ones are seen.
func (f Family) series(labels []Label) (string, error) {
	if len(labels) == 0 {
		return f.Name, nil
	}
	var pairs []string
	for _, l := range slices.SortedFunc(slices.Values(labels), func(a, b Label) int { return strings.Compare(a.Name, b.Name) }) {
		start := l.Name + `="`
		if !isName(l.Name) || len(pairs) > 0 && strings.HasPrefix(pairs[len(pairs)-1], start) {
			return "", fmt.Errorf("cannot write the label %q of %s: not a name, or there twice", l.Name, f.Name)
		}
		pairs = append(pairs, start+valueText.Replace(strings.ToValidUTF8(l.Value, "\ufffd"))+`"`)
	}
	return f.Name + "{" + strings.Join(pairs, ",") + "}", nil
}
