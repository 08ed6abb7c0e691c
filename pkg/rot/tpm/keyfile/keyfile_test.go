package keyfile_test

import (
	"bytes"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"birthmark/pkg/rot/tpm/keyfile"
)

var sample = keyfile.Key{
	Parent:    0x81000001,
	Public:    []byte{0, 3, 1, 2, 3},
	Private:   []byte{0, 2, 4, 5},
	EmptyAuth: true,
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	described := sample
	described.Description = "garden gate"
	under := sample
	under.Parent, under.RSAParent, under.EmptyAuth = 0x40000001, true, false
	for name, want := range map[string]keyfile.Key{"plain": sample, "described": described, "primary": under} {
		text, err := keyfile.Marshal(want)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := keyfile.Parse(append([]byte("\n"), text...))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: written (-) and read (+) differ:\n%s", name, diff)
		}
	}
}

// The form in which the parent is written decides which tools can read the file.
func TestParentIsAPositiveInteger(t *testing.T) {
	text, err := keyfile.Marshal(sample)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if want := []byte{asn1.TagInteger, 5, 0, 0x81, 0, 0, 1}; !bytes.Contains(block.Bytes, want) {
		t.Errorf("got %x, want it to hold %x", block.Bytes, want)
	}
}

// debian.pem was made with tpm2_create and tpm2_encodeobject of tpm2-tools 5.4.
func TestReadsKeysOfOtherTools(t *testing.T) {
	text, err := os.ReadFile("testdata/debian.pem")
	if err != nil {
		t.Fatal(err)
	}
	k, err := keyfile.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if k.Parent != 0x81000001 || len(k.Public) != 88 || len(k.Private) != 128 {
		t.Errorf("got parent %#x, %d and %d bytes, want 0x81000001, 88 and 128", k.Parent, len(k.Public), len(k.Private))
	}
}

func TestTakesANegativeParent(t *testing.T) {
	k, err := keyfile.Parse(file(t, "30 1d 06 06 67 81 05 0a 01 03 a0 03 01 01 ff 02 04 81 00 00 01 04 03 00 01 07 04 03 00 01 08"))
	if err != nil {
		t.Fatal(err)
	}
	if k.Parent != 0x81000001 {
		t.Errorf("got parent %#x, want 0x81000001", k.Parent)
	}
}

func TestRefuses(t *testing.T) {
	const head = "06 06 67 81 05 0a 01 03 "
	const tail = "02 05 00 81 00 00 01 04 03 00 01 07 04 03 00 01 08"
	good, err := keyfile.Marshal(sample)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keyfile.Parse(file(t, seq(head+tail))); err != nil {
		t.Fatalf("the file that all others are spoilt from: %v", err)
	}
	for name, tt := range map[string]struct {
		text []byte
		want string
	}{
		"nothing":              {nil, "does not begin"},
		"another PEM type":     {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{0x30, 0}}), "does not begin"},
		"text in front":        {append([]byte("hello\n"), good...), "does not begin"},
		"two keys":             {append(good[:len(good):len(good)], good...), "more in it than one key"},
		"too long":             {append(good[:len(good):len(good)], make([]byte, keyfile.SizeLimit)...), "at most 16384"},
		"cut short":            {good[:len(good)-30], "broken PEM"},
		"a sealed object":      {file(t, seq("06 06 67 81 05 0a 01 05 "+tail)), "key type 2.23.133.10.1.5"},
		"a policy":             {file(t, seq(head+"a1 02 30 00 "+tail)), "needs a policy"},
		"an import":            {file(t, seq(head+"a2 03 04 01 00 "+tail)), "imported first"},
		"an unknown element":   {file(t, seq(head+"a6 02 05 00 "+tail)), "unknown element [6]"},
		"elements out of turn": {file(t, seq(head+"a5 03 01 01 ff a0 03 01 01 ff "+tail)), "misplaced element [0]"},
		"an element twice":     {file(t, seq(head+"a0 03 01 01 ff a0 03 01 01 ff "+tail)), "misplaced element [0]"},
		"bytes after it":       {file(t, seq(head+tail)+" 00"), "1 bytes too many"},
		"bytes at its end":     {file(t, seq(head+tail+" 05 00")), "2 bytes too many"},
		"a huge parent":        {file(t, seq(head+"02 05 01 00 00 00 00 04 03 00 01 07 04 03 00 01 08")), "no TPM handle"},
		"a short public part":  {file(t, seq(head+"02 01 01 04 03 00 02 07 04 03 00 01 08")), "no TPM2B_PUBLIC"},
		"no private part":      {file(t, seq(head+"02 01 01 04 03 00 01 07 04 02 00 00")), "no TPM2B_PRIVATE"},
	} {
		k, err := keyfile.Parse(tt.text)
		if err == nil {
			t.Errorf("%s: got %+v, want an error", name, k)
		} else if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %q, want it to say %q", name, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	good, err := keyfile.Marshal(sample)
	if err != nil {
		f.Fatal(err)
	}
	debian, err := os.ReadFile("testdata/debian.pem")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(debian)
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := keyfile.Parse(text)
		if err != nil {
			return
		}
		again, err := keyfile.Marshal(k)
		if err != nil {
			t.Fatalf("cannot write what was read: %v", err)
		}
		back, err := keyfile.Parse(again)
		if diff := cmp.Diff(k, back); err != nil || diff != "" {
			t.Errorf("%v; read (-) and read again (+) differ:\n%s", err, diff)
		}
	})
}
