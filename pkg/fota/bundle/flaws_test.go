package bundle

import (
	"slices"
	"testing"
)

// flaws are those that other updaters had, and bad bundles that each of them would have
// let pass. What is not about the bytes of a bundle has its test where it belongs.
var flaws = []struct {
	where   string
	bundles []string
}{
	{"RAUC, CVE-2020-25860: replaced between verification and use", []string{
		"payload: another one, once its signature was believed", "payload: another block, once its signature was believed",
		"plain: another payload, once its signature was believed",
	}},
	{"RAUC, CVE-2026-34155: a payload of more than 2 GiB, of which the beginning is signed", []string{"plain: 4 GiB, of which nobody signed the most"}},
	{"SWUpdate, CVE-2026-109399: a CA that comes along is believed", []string{"a sibling of the issuer (CVE-2026-109399)", "a CA below the issuer"}},
	{"SWUpdate, CVE-2026-28525: a length that wraps around", []string{
		"a negative length", "a length that overflows with the trailer", "a length of 4 GiB and a bit", "a length of all but the trailer",
	}},
	{"Mender, CVE-2025-67903: other bytes are parsed than were verified", []string{
		"another manifest in it than was signed (CVE-2025-67903)", "inner manifest: another version", "inner manifest: another digest",
	}},
	{"Mender, MEN-1412: a part that nobody verifies; no key means no verification", []string{
		"payload: the first bit", "payload: the first bit of the hash tree", "plain: a bit in the middle", "a bit of the signature changed", "image: another bit",
		"nobody is trusted", "a trust of nothing", "no issuer is pinned", "no CRL at all",
	}},
	{"fwupd, CVE-2020-10759: no signature is taken for a good one", []string{
		"nobody signed (CVE-2020-10759)", "digested instead of signed (CVE-2020-10759)", "plain data instead of signed",
		"content of another type", "a trailer of zeros", "no certificates",
	}},
	{"go-tuf, CVE-2022-29173: the way back is open on one of several paths", []string{
		"older than what runs", "of an older security version", "below the floor", "below the floor, with permission",
	}},
	{"aktualizr, 1185 and 1449: something old is believed, or verified in one place only", []string{
		"a CRL that is over", "a signer that was revoked by a CRL that is over", "plain, where only verity is allowed",
	}},
	{"uthenticode, ruby-saml: two parsers, two answers", []string{
		"attributes shown as the content", "contentType twice", "two messageDigests", "inner manifest: a version twice",
	}},
	{"BERserk: lax DER, and something behind it", []string{
		"a byte after the message", "an indefinite length", "a length in more bytes than it needs", "two hundred sequences in each other",
		"a byte after the signature", "an RSA signature of ones",
	}},
	{"bspatch, squashfs: what is signed is believed to be well formed", []string{
		"squashfs: larger than the payload", "squashfs: a size below zero", "squashfs: inodes behind the end", "squashfs: more inodes than are read",
		"squashfs: an image that is a link upwards",
	}},
}

// wantFlaws holds that nobody took a bundle off the corpus that such a flaw is about.
func wantFlaws(t *testing.T, names []string) {
	t.Helper()
	for _, f := range flaws {
		for _, bundle := range f.bundles {
			if !slices.Contains(names, bundle) {
				t.Errorf("%s: there is no bad bundle %q", f.where, bundle)
			}
		}
	}
}
