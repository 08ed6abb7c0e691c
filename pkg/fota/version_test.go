package fota_test

import (
	"encoding/json"
	"testing"

	"birthmark/pkg/fota"
)

func TestParseVersion(t *testing.T) {
	for _, good := range []string{"0.0.0+sv0", "2.1.0+sv6", "4294967295.4294967295.4294967295+sv4294967295"} {
		v, err := fota.ParseVersion(good)
		if err != nil || v.String() != good {
			t.Errorf("%q: got %v, %v", good, v, err)
		}
	}
	for _, bad := range []string{
		"", "2.1.0", "2.1+sv1", "2.1.0.0+sv1", "2.1.0+sv", "2.1.0+sv01", "02.1.0+sv1", "2.1.0-rc1+sv1",
		"2.1.0+sv1.build", "2.1.0+sv-1", "+2.1.0+sv1", " 2.1.0+sv1", "4294967296.0.0+sv1", "2.1.0+sv1+sv2",
		"00000000000000000000000000000000000000000000000.0.0+sv1",
	} {
		if v, err := fota.ParseVersion(bad); err == nil {
			t.Errorf("%q was read as %v", bad, v)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("2.1.0+sv6")
	f.Add("2.1.0-rc1+sv6")
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := fota.ParseVersion(s); err == nil && v.String() != s {
			t.Errorf("%q was read as %v", s, v)
		}
	})
}

func TestCompare(t *testing.T) {
	order := []string{"0.9.9+sv9", "1.0.0+sv1", "1.0.0+sv2", "1.0.10+sv1", "1.2.0+sv1", "10.0.0+sv1"}
	for i, a := range order {
		for j, b := range order {
			va, errA := fota.ParseVersion(a)
			vb, errB := fota.ParseVersion(b)
			if errA != nil || errB != nil {
				t.Fatal(errA, errB)
			}
			if got := va.Compare(vb); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s against %s: got %d", a, b, got)
			}
		}
	}
}

func TestVersionInJSON(t *testing.T) {
	for _, text := range []string{`""`, `"2.1.0+sv6"`} {
		var v fota.Version
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		if got, err := json.Marshal(v); err != nil || string(got) != text {
			t.Errorf("%s became %s, %v", text, got, err)
		}
	}
	if err := json.Unmarshal([]byte(`"2.1"`), new(fota.Version)); err == nil {
		t.Error("2.1 was read as a version")
	}
}
