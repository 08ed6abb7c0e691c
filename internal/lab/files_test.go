package lab

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestJournalIsBounded holds that a journal never has more than its limit, keeps one
// of those before it, and no line is torn.
func TestJournalIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.log")
	write := func(lines ...string) {
		t.Helper()
		j, err := openJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		j.limit = 10
		for _, line := range lines {
			if _, err := j.Write([]byte(line + "\n")); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	check := func(name, want string) {
		t.Helper()
		got, err := os.ReadFile(name)
		if err != nil || string(got) != want {
			t.Errorf("%s: got %q (%v), want %q", filepath.Base(name), got, err, want)
		}
	}
	write("one", "two")
	write("x") // as after a restart
	check(path, "one\ntwo\nx\n")
	write("three")
	check(path, "three\n")
	check(path+".1", "one\ntwo\nx\n")
	write("longer than the limit", "four")
	check(path, "four\n")
	check(path+".1", "longer than the limit\n")
}

// TestJournalRecovers: when a file cannot be begun anew, lines are lost, and the next
// one that can be written is.
func TestJournalRecovers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(filepath.Join(dir, "broker.log"))
	if err != nil {
		t.Fatal(err)
	}
	j.limit = 4
	if _, err := j.Write([]byte("one\n")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := j.Write([]byte("two\n")); err == nil {
			t.Error("got no error from a folder that is gone")
		}
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Write([]byte("three\n")); err != nil {
		t.Error(err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

func TestPortsAreRefused(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"nothing", ``},
		{"no JSON", `maker`},
		{"one is missing", `{"maker":1,"owner":2}`},
		{"two are the same", `{"maker":1,"owner":2,"broker":2}`},
		{"too high", `{"maker":1,"owner":2,"broker":65536}`},
		{"negative", `{"maker":-1,"owner":2,"broker":3}`},
		{"too long", `{"maker":1,"owner":2,"broker":3}` + strings.Repeat(" ", portsLimit)},
	} {
		if p, err := parsePorts([]byte(c.text)); err == nil {
			t.Errorf("%s: got %v, want an error", c.name, p)
		}
	}
}

// FuzzPorts holds that what is read as ports is written and read the same.
func FuzzPorts(f *testing.F) {
	f.Add([]byte(`{"maker":20001,"owner":20002,"broker":20003}`))
	f.Add([]byte(`{"maker":0}`))
	f.Add([]byte(`[1,2,3]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := parsePorts(text)
		if err != nil {
			return
		}
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if q, err := parsePorts(again); err != nil || q != p {
			t.Errorf("got %v (%v), want %v", q, err, p)
		}
	})
}
