package audit

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// chain is a log of n lines.
func chain(tb testing.TB, n int) []byte {
	dir := tb.TempDir()
	l := mustOpen(tb, dir)
	for i := range n {
		mustAppend(tb, l, fmt.Sprint("event-", i))
	}
	return mustRead(tb, l.path())
}

// keeps reports whether somebody who has seen the last hash of was accepts text for it.
func keeps(text []byte, was string) bool {
	last, _, err := Verify(bytes.NewReader(text), "")
	return err == nil && last == was
}

func TestEveryChangedByteIsFound(t *testing.T) {
	text := chain(t, 4)
	last, n, err := Verify(bytes.NewReader(text), "")
	if err != nil || n != 4 {
		t.Fatalf("%d lines verify (%v), want 4", n, err)
	}
	for i := range text {
		for _, b := range []byte{text[i] ^ 1, text[i] ^ 0x20, ' ', '\n', 0} {
			if b == text[i] {
				continue
			}
			spoiled := slices.Clone(text)
			spoiled[i] = b
			if keeps(spoiled, last) {
				t.Errorf("byte %d, %q, was changed to %q and nobody noticed", i, text[i], b)
			}
		}
		if keeps(slices.Delete(slices.Clone(text), i, i+1), last) {
			t.Errorf("byte %d, %q, was removed and nobody noticed", i, text[i])
		}
		if keeps(slices.Insert(slices.Clone(text), i, ' '), last) {
			t.Errorf("a space was put before byte %d and nobody noticed", i)
		}
	}
}

func TestEveryMovedLineIsFound(t *testing.T) {
	text := chain(t, 5)
	last, _, _ := Verify(bytes.NewReader(text), "")
	lines := slices.Collect(bytes.Lines(text))
	for i := range lines {
		for name, spoiled := range map[string][][]byte{
			"removed": slices.Delete(slices.Clone(lines), i, i+1),
			"doubled": slices.Insert(slices.Clone(lines), i, lines[i]),
			"forged":  slices.Insert(slices.Clone(lines), i, []byte(`{"seq":1,"time":"2000-01-01T00:00:00Z","event":"forged"}`+"\n")),
			"empty":   slices.Insert(slices.Clone(lines), i, []byte("\n")),
		} {
			// The first line may follow any other, and of the last only its hash tells.
			if i == 0 && name == "removed" {
				continue
			}
			if keeps(slices.Concat(spoiled...), last) {
				t.Errorf("line %d %s and nobody noticed", i+1, name)
			}
		}
		for j := range i {
			spoiled := slices.Clone(lines)
			spoiled[i], spoiled[j] = spoiled[j], spoiled[i]
			if keeps(slices.Concat(spoiled...), last) {
				t.Errorf("lines %d and %d were swapped and nobody noticed", i+1, j+1)
			}
		}
	}
	if _, n, err := Verify(bytes.NewReader(text), "another"); err == nil || n != 0 {
		t.Errorf("%d lines verify (%v) though they do not follow what came before", n, err)
	}
	if _, n, err := Verify(strings.NewReader(string(lines[0])+string(lines[2])), ""); err == nil || n != 1 || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("%d lines verify (%v), want one, and an error about line 2", n, err)
	}
	if _, _, err := Verify(bytes.NewReader(make([]byte, fileLimit+1)), ""); !errors.Is(err, errTooBig) {
		t.Errorf("Verify of too much: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	whole := chain(f, 3)
	f.Add([]byte(""), "")
	f.Add(whole, "")
	f.Add(whole[:len(whole)-5], "")
	f.Add(whole[bytes.IndexByte(whole, '\n')+1:], "")
	f.Add([]byte("{}\n"), "x")
	f.Fuzz(func(t *testing.T, text []byte, prev string) {
		last, n, err := Verify(bytes.NewReader(text), prev)
		if err == nil && len(text) > 0 && (text[len(text)-1] != '\n' || bytes.Count(text, []byte{'\n'}) != n) {
			t.Errorf("%d lines verify in %q", n, text)
		}
		if n == 0 && last != prev {
			t.Errorf("no line of %q verifies, and its hash is %q", text, last)
		}
		// What verified verifies again, and its halves as two files.
		good := text[:scan(text, prev).good]
		if _, m, err := Verify(bytes.NewReader(good), prev); err != nil || m != n {
			t.Errorf("%d lines verify in %q, then %d: %v", n, text, m, err)
		}
		if cut := bytes.IndexByte(good, '\n') + 1; cut > 0 {
			middle, _, err := Verify(bytes.NewReader(good[:cut]), prev)
			if err != nil {
				t.Fatalf("the first line of %q: %v", good, err)
			}
			if end, _, err := Verify(bytes.NewReader(good[cut:]), middle); err != nil || end != last {
				t.Errorf("the other lines of %q: %v", good, err)
			}
		}
	})
}
