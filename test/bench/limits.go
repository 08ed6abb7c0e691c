package main

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// A limit is one line of the table in docs/numbers.md.
type limit struct {
	name, unit, part string
	value            float64
	atLeast          bool // a figure below it is the fault
}

// readLimits reads the lines of a Markdown table whose second column is a number:
// name, limit, unit, what, part. What ends with "at least" is held from below.
func readLimits(r io.Reader) ([]limit, error) {
	var limits []limit
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		cells := strings.Split(lines.Text(), "|")
		if len(cells) != 7 {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		value, err := strconv.ParseFloat(cells[2], 64)
		if err != nil { // the head
			continue
		}
		l := limit{name: cells[1], value: value, unit: cells[3], part: cells[5], atLeast: strings.HasSuffix(cells[4], "at least")}
		if slices.ContainsFunc(limits, func(other limit) bool { return other.name == l.name }) {
			return nil, fmt.Errorf("%s stands twice in the table of limits", l.name)
		}
		limits = append(limits, l)
	}
	if len(limits) == 0 {
		return nil, fmt.Errorf("the table of limits has no lines (%v)", lines.Err())
	}
	return limits, lines.Err()
}

// best is the figure that counts among those measured: noise only ever makes one
// worse.
func (l limit) best(measured []float64) float64 {
	if l.atLeast {
		return slices.Max(measured)
	}
	return slices.Min(measured)
}

func (l limit) exceeded(figure float64) bool {
	if l.atLeast {
		return figure < l.value
	}
	return figure > l.value
}

func (l limit) String() string {
	sign := "≤"
	if l.atLeast {
		sign = "≥"
	}
	return fmt.Sprintf("%s %s %s", sign, number(l.value), l.unit)
}

// number writes a figure with three digits, or all of them before the point.
func number(v float64) string {
	switch {
	case v == float64(int64(v)), v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
