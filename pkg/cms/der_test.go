package cms

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

// unhex reads octets as a person writes them, with spaces.
func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// nested is depth elements, one within the other.
func nested(depth int, tag byte) []byte {
	var b []byte
	for range depth {
		b = tlv(tag, b)
	}
	return b
}

// toBER rewrites DER with indefinite lengths, and strings in segments.
func toBER(tb testing.TB, der []byte) []byte {
	return rewrite(tb, der, func(tag byte, contents []byte) []byte {
		return slices.Concat([]byte{tag, 0x80}, contents, []byte{0, 0})
	})
}

// toLongBER rewrites DER with lengths of four octets, and strings in segments. What
// is empty keeps its length of one octet, or openssl could not read the last.
func toLongBER(tb testing.TB, der []byte) []byte {
	return rewrite(tb, der, func(tag byte, contents []byte) []byte {
		n := len(contents)
		if n == 0 {
			return tlv(tag)
		}
		return append([]byte{tag, 0x84, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, contents...)
	})
}

func rewrite(tb testing.TB, der []byte, wrap func(tag byte, contents []byte) []byte) (out []byte) {
	tb.Helper()
	for len(der) > 0 {
		e, rest, err := split(der, false)
		if err != nil {
			tb.Fatal(err)
		}
		switch n := len(e.contents); {
		case e.tag&constructed != 0:
			out = append(out, wrap(e.tag, rewrite(tb, e.contents, wrap))...)
		case e.tag == tagOctetString && n > 2: // two segments, the second in two
			inner := wrap(e.tag|constructed, slices.Concat(tlv(e.tag, e.contents[1:2]), tlv(e.tag, e.contents[2:])))
			out = append(out, wrap(e.tag|constructed, slices.Concat(tlv(e.tag, e.contents[:1]), inner))...)
		case e.tag == tagBitString && n > 2:
			first, last := append([]byte{0}, e.contents[1:2]...), append([]byte{e.contents[0]}, e.contents[2:]...)
			out = append(out, wrap(e.tag|constructed, slices.Concat(tlv(e.tag, first), tlv(e.tag, last)))...)
		default:
			out = append(out, tlv(e.tag, e.contents)...)
		}
		der = rest
	}
	return out
}

func TestCheckDER(t *testing.T) {
	for _, tc := range []struct {
		name, octets string
		want         string // part of the error; "" for none
	}{
		{"an empty sequence", "30 00", ""},
		{"an integer", "02 01 05", ""},
		{"elements in elements", "30 07 31 05 a0 03 04 01 00", ""},
		{"127 octets", "04 7f" + strings.Repeat("00", 127), ""},
		{"128 octets", "04 81 80" + strings.Repeat("00", 128), ""},
		{"256 octets", "04 82 01 00" + strings.Repeat("00", 256), ""},
		{"a primitive element of no universal type", "80 01 ff", ""},
		{"tag number 30", "1e 00", ""},
		{"as deep as can be", hex.EncodeToString(nested(DepthLimit, tagSequence)), ""},

		{"nothing", "", "ends within"},
		{"one octet", "30", "ends within"},
		{"a length without octets", "30 81", "ends within"},
		{"a length of which half is there", "30 82 01", "ends within"},
		{"contents that are not there", "04 02 00", "ends within"},
		{"contents beyond what holds them", "30 03 04 02 00", "ends within"},
		{"four gigabytes that are not there", "30 84 ff ff ff ff", "ends within"},
		{"bytes after the end", "30 00 00", "after the end"},
		{"two elements", "30 00 30 00", "after the end"},
		{"an indefinite length", "30 80 00 00", "indefinite"},
		{"an indefinite length within", "30 04 31 80 00 00", "indefinite"},
		{"127 octets in the long form", "04 81 7f" + strings.Repeat("00", 127), "longer than it needs"},
		{"no octets in the long form", "04 81 00", "longer than it needs"},
		{"a length that begins with zero", "04 82 00 80" + strings.Repeat("00", 128), "longer than it needs"},
		{"a length of five octets", "04 85 00 00 00 00 01 00", "four octets"},
		{"a length of 127 octets", "04 ff 00", "four octets"},
		{"a high tag number", "1f 80 01 00", "tag number"},
		{"a high tag number in the low form", "9f 05 00", "tag number"},
		{"a high tag number, constructed", "bf 1f 00", "tag number"},
		{"end of contents", "00 00", "end-of-contents"},
		{"end of contents within", "30 02 00 00", "end-of-contents"},
		{"a sequence without elements", "10 00", "primitive"},
		{"a set without elements", "11 00", "primitive"},
		{"a string in segments", "24 03 04 01 00", "segments"},
		{"an integer with elements", "22 03 02 01 00", "constructed"},
		{"an object identifier with elements", "26 00", "constructed"},
		{"too deep", hex.EncodeToString(nested(DepthLimit+1, tagSequence)), "deep"},
		{"too deep, of no universal type", hex.EncodeToString(nested(DepthLimit+1, tagContext0)), "deep"},
	} {
		err := CheckDER(unhex(t, tc.octets))
		if got := err != nil; got != (tc.want != "") || got && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want an error about %q", tc.name, err, tc.want)
		}
	}
}

func TestToDER(t *testing.T) {
	for _, tc := range []struct{ name, ber, der string }{
		{"DER", "30 07 31 05 a0 03 04 01 00", "30 07 31 05 a0 03 04 01 00"},
		{"an indefinite sequence", "30 80 02 01 05 00 00", "30 03 02 01 05"},
		{"an empty indefinite set", "31 80 00 00", "31 00"},
		{"indefinite within indefinite", "30 80 31 80 00 00 a0 80 05 00 00 00 00 00", "30 06 31 00 a0 02 05 00"},
		{"indefinite within definite", "30 04 31 80 00 00", "30 02 31 00"},
		{"definite within indefinite", "30 80 31 02 05 00 00 00", "30 04 31 02 05 00"},
		{"a long length", "30 83 00 00 02 05 00", "30 02 05 00"},
		{"a longer length", "04 84 00 00 00 01 ff", "04 01 ff"},
		{"zero octets in a string are no end", "30 80 04 02 00 00 00 00", "30 04 04 02 00 00"},
		{"a string in segments", "24 80 04 02 01 02 04 01 03 00 00", "04 03 01 02 03"},
		{"a definite string in segments", "24 07 04 02 01 02 04 01 03", "04 03 01 02 03"},
		{"segments in segments", "24 80 24 80 04 01 01 00 00 04 00 24 03 04 01 02 00 00", "04 02 01 02"},
		{"a string of no segments", "24 80 00 00", "04 00"},
		{"a UTF8String", "2c 80 04 01 41 04 01 42 00 00", "0c 02 41 42"},
		{"a UTCTime", "37 05 04 01 41 04 00", "17 01 41"},
		{"a bit string", "23 80 03 02 00 ff 03 02 04 f0 00 00", "03 03 04 ff f0"},
		{"a bit string of no segments", "23 00", "03 01 00"},
		{"a sequence after a string", "30 80 24 80 04 00 00 00 30 80 02 01 05 00 00 00 00", "30 07 04 00 30 03 02 01 05"},
		{"segments of no universal type, which nobody can know", "a0 80 04 00 04 00 00 00", "a0 04 04 00 04 00"},
	} {
		der, err := toDER(unhex(t, tc.ber))
		if want := unhex(t, tc.der); err != nil || !bytes.Equal(der, want) {
			t.Errorf("%s: % x, %v, want % x", tc.name, der, err, want)
		}
	}
}

func TestToDERRefuses(t *testing.T) {
	for _, tc := range []struct{ name, ber, want string }{
		{"no end", "30 80", "ends within"},
		{"half an end", "30 80 00", "ends within"},
		{"no end of the outer one", "30 80 31 80 00 00", "ends within"},
		{"an end that is not empty", "30 80 00 01 00", "end-of-contents"},
		{"an end of nothing", "30 02 00 00", "end-of-contents"},
		{"only an end", "00 00", "end-of-contents"},
		{"bytes after the end", "30 80 00 00 00", "after the end"},
		{"a primitive indefinite string", "04 80 00 00", "indefinite"},
		{"an indefinite integer", "22 80 00 00", "constructed"},
		{"the length that is reserved", "30 ff", "four octets"},
		{"a string with an integer", "24 80 02 01 00 00 00", "another type"},
		{"a string with a bit string", "24 80 03 01 00 00 00", "another type"},
		{"a UTF8String of UTF8Strings", "2c 80 0c 01 41 00 00", "another type"},
		{"a bit string of octet strings", "23 80 04 01 00 00 00", "another type"},
		{"unused bits in the middle", "23 80 03 02 04 f0 03 02 00 ff 00 00", "does not fit"},
		{"a segment without its first octet", "23 80 03 00 00 00", "does not fit"},
		{"nine unused bits", "23 80 03 02 09 ff 00 00", "does not fit"},
		{"too deep", strings.Repeat("30 80", DepthLimit+1), "deep"},
		{"segments too deep", strings.Repeat("24 80", DepthLimit+1), "deep"},
	} {
		der, err := toDER(unhex(t, tc.ber))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: % x, %v, want an error about %q", tc.name, der, err, tc.want)
		}
	}
}

func TestToDERUndoesBER(t *testing.T) {
	for _, name := range []string{"chain.p7", "crl.p7", "signed.p7", "enveloped.p7"} {
		der := file(t, name)
		for form, b := range map[string][]byte{"DER": der, "BER": toBER(t, der), "BER in long form": toLongBER(t, der)} {
			if got, err := toDER(b); err != nil || !bytes.Equal(got, der) {
				t.Errorf("%s from %s: %d bytes, %v, want the %d of the file", name, form, len(got), err, len(der))
			}
		}
	}
	// openssl writes the content of a stream in segments.
	der, err := toDER(file(t, "stream.p7"))
	if err != nil || !bytes.Contains(der, tlv(tagContext0, tlv(tagOctetString, []byte("hello\n")))) {
		t.Errorf("a streamed message: %v, its content is not in one piece", err)
	}
}

// The most work that a message of SizeLimit can make. What is counted is the pieces
// that are listed, each of which is looked at twice, and how often memory is asked
// for: something copied at every level, or with every piece, would show there.
func TestToDERWorksNoMoreThanTheSizeAllows(t *testing.T) {
	fill := func(head, body, tail string) []byte {
		h, b, e := unhex(t, head), unhex(t, body), unhex(t, tail)
		return slices.Concat(h, bytes.Repeat(b, (SizeLimit-len(h)-len(e))/len(b)), e)
	}
	level := strings.Repeat("30 80", DepthLimit-1) + strings.Repeat("00 00", DepthLimit-1)
	var tower []byte // each element holds all that follows
	for len(tower)+5 < SizeLimit {
		n := SizeLimit - len(tower) - 5
		tower = append(tower, 0x30, 0x83, byte(n>>16), byte(n>>8), byte(n))
	}
	tower = append(tower, make([]byte, SizeLimit-len(tower))...)
	for _, tc := range []struct {
		name   string
		ber    []byte
		want   string // part of the error; "" for none
		pieces int    // at most
	}{
		{"small elements", fill("30 80", "04 07 01 02 03 04 05 06 07", "00 00"), "", elementLimit},
		{"small indefinite elements", fill("30 80", "30 80 04 05 01 02 03 04 05 00 00", "00 00"), "elements", elementLimit},
		{"small segments", fill("24 80", "04 07 01 02 03 04 05 06 07", "00 00"), "", elementLimit},
		{"segments that hold no segments", fill("24 80", "24 80 00 00", "00 00"), "", 1},
		{"small segments of bits", fill("23 80", "03 07 00 01 02 03 04 05 06", "00 00"), "", elementLimit},
		{"empty elements", fill("30 80", "05 00", "00 00"), "elements", elementLimit},
		{"empty segments", fill("24 80", "04 00", "00 00"), "elements", elementLimit},
		{"towers side by side", fill("30 80", level, "00 00"), "elements", elementLimit},
		{"one tower", tower, "deep", DepthLimit},
		{"one tower, indefinite", fill("", "30 80", ""), "deep", DepthLimit},
		{"one tower of segments", fill("", "24 80", ""), "deep", 1},
	} {
		var c converter
		_, _, err := c.element(tc.ber, 1)
		if got := err != nil; got != (tc.want != "") || got && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want an error about %q", tc.name, err, tc.want)
		}
		if len(c.pieces) > tc.pieces {
			t.Errorf("%s: %d pieces, want at most %d", tc.name, len(c.pieces), tc.pieces)
		}
		der, err := toDER(tc.ber)
		if tc.want == "" && (err != nil || CheckDER(der) != nil || len(der) > len(tc.ber)+4) {
			t.Errorf("%s: %d bytes became %d, %v, %v", tc.name, len(tc.ber), len(der), err, CheckDER(der))
		}
		if allocs := testing.AllocsPerRun(1, func() { _, _ = toDER(tc.ber) }); allocs > 100 {
			t.Errorf("%s: memory asked for %v times, want a few", tc.name, allocs)
		}
	}
}

// What toDER lets out, CheckDER lets in; what CheckDER lets in, toDER leaves alone.
func FuzzToDER(f *testing.F) {
	for _, octets := range []string{
		"30 07 31 05 a0 03 04 01 00",
		"30 80 31 80 00 00 a0 84 00 00 00 04 24 80 00 00 00 00",
		"24 80 24 80 04 01 01 00 00 04 00 24 03 04 01 02 00 00",
		"23 80 03 02 00 ff 03 02 04 f0 00 00",
		"1f 80", "30 81",
	} {
		f.Add(unhex(f, octets))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 2*elementLimit { // may be too many
			return
		}
		strict := CheckDER(b)
		der, err := toDER(b)
		if err != nil {
			if strict == nil {
				t.Fatalf("DER is refused: %v", err)
			}
			return
		}
		if strict == nil && !bytes.Equal(der, b) {
			t.Fatalf("DER became % x", der)
		}
		if err := CheckDER(der); err != nil {
			t.Fatalf("% x: %v", der, err)
		}
		if again, err := toDER(toBER(t, der)); err == nil && !bytes.Equal(again, der) {
			t.Fatalf("% x there, % x back", der, again)
		}
	})
}
