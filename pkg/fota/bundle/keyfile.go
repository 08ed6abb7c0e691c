package bundle

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"birthmark/pkg/fota"
)

const (
	manifestLimit = 64 << 10 // bytes
	groupLimit    = 64
	nameLimit     = 128 // bytes of the name of a group or key
)

// A group is one "[name]" of a manifest, with its keys.
type group struct {
	name string
	keys map[string]string
}

// readKeyFile reads the syntax of a manifest, GKeyFile's, as far as `rauc bundle` writes
// it. GKeyFile itself is lenient, and takes the last of two values where the next
// reader might take the first; what leaves such a choice is refused here: a group or a
// key that is there twice, spaces around names and values, carriage returns.
func readKeyFile(text []byte) ([]group, error) {
	switch {
	case len(text) == 0 || len(text) > manifestLimit:
		return nil, refuse("size", "a manifest of %d bytes, limit %d", len(text), manifestLimit)
	case !utf8.Valid(text):
		return nil, refuse("text", "the manifest is not UTF-8")
	}
	var groups []group
	seen := map[string]bool{}
	n := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		n++
		if strings.ContainsFunc(line, isControl) {
			return nil, refuse("text", "line %d: a control character", n)
		}
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' {
			name, ok := strings.CutSuffix(line[1:], "]")
			switch {
			case !ok || !isName(name):
				return nil, refuse("syntax", "line %d: not the name of a group", n)
			case seen[name]:
				return nil, refuse("duplicate", "line %d: group %s is there twice", n, name)
			case len(groups) == groupLimit:
				return nil, refuse("size", "more than %d groups", groupLimit)
			}
			seen[name] = true
			groups = append(groups, group{name, map[string]string{}})
			continue
		}
		key, raw, ok := strings.Cut(line, "=")
		if !ok || !isName(key) || len(groups) == 0 {
			return nil, refuse("syntax", "line %d: neither a group nor a key of one", n)
		}
		g := groups[len(groups)-1]
		if _, ok := g.keys[key]; ok {
			return nil, refuse("duplicate", "line %d: %s is there twice in group %s", n, key, g.name)
		}
		value, ok := unescape(raw)
		if !ok {
			return nil, refuse("syntax", "line %d: the value of %s is not written as GKeyFile would", n, key)
		}
		g.keys[key] = value
	}
	return groups, nil
}

// isControl is unicode.IsControl but for tabs, which GKeyFile writes as they are unless
// they begin a value.
func isControl(r rune) bool { return r != '\t' && unicode.IsControl(r) }

// isName reports whether s may be the name of a group or a key.
func isName(s string) bool {
	return s != "" && len(s) <= nameLimit && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_.", r))
	})
}

// unescape returns the string that a value stands for. Spaces at its beginning are
// written as \s, so those that are there literally were put there by somebody else;
// GKeyFile would drop them. It keeps those at the end, which is no better.
func unescape(raw string) (string, bool) {
	if strings.TrimSpace(raw) != raw {
		return "", false
	}
	if !strings.Contains(raw, `\`) {
		return raw, true
	}
	var b strings.Builder
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			b.WriteByte(raw[i])
			continue
		}
		if i++; i == len(raw) {
			return "", false
		}
		at := strings.IndexByte(`sntr\`, raw[i])
		if at < 0 {
			return "", false
		}
		b.WriteByte(" \n\t\r\\"[at])
	}
	return b.String(), true
}

func refuse(code, format string, args ...any) error {
	return fota.Refuse(fota.StageManifest, code, format, args...)
}
