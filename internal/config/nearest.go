package config

import (
	"fmt"
	"slices"
	"strings"
)

// noSuchSection explains a section that does not exist.
func noSuchSection(name string) string {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	if near := nearest(name, names); near != "" {
		return fmt.Sprintf("no section [%s]: did you mean [%s]?", clip(name), near)
	}
	return fmt.Sprintf("no section [%s]: there are %s", clip(name), strings.Join(names, ", "))
}

// noSuchSetting explains a setting that does not exist in a section that does: it
// is misspelled, or belongs elsewhere, or neither.
func noSuchSetting(sectionName, key string) string {
	sec, _ := findSection(sectionName)
	var here, elsewhere []string
	for _, s := range sec.settings {
		here = append(here, s.key)
	}
	for _, other := range sections {
		if _, ok := other.find(key); ok {
			elsewhere = append(elsewhere, "["+other.name+"]")
		}
	}
	what := fmt.Sprintf("no setting %s in [%s]: ", clip(key), sectionName)
	if near := nearest(key, here); near != "" {
		return what + "did you mean " + near + "?"
	}
	if elsewhere != nil {
		return what + "it belongs into " + strings.Join(elsewhere, " or ")
	}
	return what + "there are " + strings.Join(here, ", ")
}

// clip keeps a name that somebody wrote short enough for one line.
func clip(name string) string {
	const limit = 64
	if len(name) > limit {
		return fmt.Sprintf("%q…", name[:limit])
	}
	return name
}

// nearest is the candidate with the fewest wrong letters, "" if more than a third
// of them, or than two, would be wrong.
func nearest(name string, candidates []string) string {
	best, fewest := "", max(2, len(name)/3)+1
	for _, c := range candidates {
		if d := distance(strings.ToLower(name), c, fewest); d < fewest {
			best, fewest = c, d
		}
	}
	return best
}

// distance counts the letters to insert, remove or replace to make b from a
// (Levenshtein); anything from limit on is limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := corner
			if a[i] != b[j] {
				replaced++
			}
			corner = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
		if slices.Min(row) >= limit {
			return limit
		}
	}
	return row[len(b)]
}
