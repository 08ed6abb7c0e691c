package firmware

import "testing"

func TestTextsOfOthersAreQuotedWhereTheyAreMoreThanLetters(t *testing.T) {
	for text, want := range map[string]string{
		"acme-gw":             "acme-gw",
		"Gerät 7 \"neu\"":     "Gerät 7 \"neu\"",
		"":                    `""`,
		"two\nlines":          `"two\nlines"`,
		"\x1b[2J":             `"\x1b[2J"`,
		"\u009b2J":            `"\u009b2J"`,
		"abc\u202egnp.exe":    `"abc\u202egnp.exe"`,
		"\xff":                `"\xff"`,
		"a\u2028b":            `"a\u2028b"`,
		"zero\u200bwidth":     `"zero\u200bwidth"`,
		"\ufffd was not text": `"� was not text"`,
	} {
		if got := legible(text); got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}
