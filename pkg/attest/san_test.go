package attest

import (
	"testing"
	"unicode/utf8"
)

func FuzzParseSAN(f *testing.F) {
	f.Add([]byte{0x30, 0x46, 0xA4, 0x44, 0x30, 0x42, 0x31, 0x16, 0x30, 0x14, 0x06, 0x05, 0x67, 0x81, 0x05, 0x02, 0x01, 0x0C, 0x0B,
		'i', 'd', ':', '0', '0', '0', '0', '1', '0', '1', '4', 0x31, 0x10, 0x30, 0x0E, 0x06, 0x05, 0x67, 0x81, 0x05, 0x02, 0x02, 0x0C, 0x05,
		's', 'w', 't', 'p', 'm', 0x31, 0x16, 0x30, 0x14, 0x06, 0x05, 0x67, 0x81, 0x05, 0x02, 0x03, 0x0C, 0x0B,
		'i', 'd', ':', '2', '0', '1', '9', '1', '0', '2', '3'})
	f.Add([]byte{0x30, 0x02, 0xA4, 0x00})
	f.Fuzz(func(t *testing.T, der []byte) {
		var ek EK
		if parseSAN(der, &ek) != nil {
			return
		}
		for _, word := range []string{ek.Manufacturer, ek.Model, ek.Version} {
			if word == "" || len(word) > sanTextLimit || !utf8.ValidString(word) {
				t.Errorf("read %q in %x", word, der)
			}
		}
	})
}

func TestManufacturersAsText(t *testing.T) {
	for id, want := range map[string]string{
		"id:494E5443": "INTC", "id:414D4400": "AMD", "id:494D5000": "IMP", "id:53544D20": "STM",
		"id:00001014": "", "id:494E54": "", "494E5443": "", "id:494E544G": "", "id:1B5B326A": "",
	} {
		if got := vendorText(id); got != want {
			t.Errorf("%s: got %q, want %q", id, got, want)
		}
	}
}
