// Package fota is firmware policy: which release runs, and which one may follow
// it.
//
// A [Manifest] is what a release says of itself, once package bundle has verified it; a
// [Policy] is what the device and its owner say; [Policy.Check] brings them together
// before the first byte is written. Whoever says no, from the container to the boot
// loader, says it as a [*Refusal]: where, by a code, and why.
//
// A release is named X.Y.Z+svN. X.Y.Z orders releases for people; N, the
// security version, only ever grows, and a device refuses to go below the one
// that it has run. It stands in the build metadata of a semantic version
// (semver.org, 10), since that is the one place that every version of
// `rauc bundle` keeps inside the signature.
package fota

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// A Version is the name of a firmware release. The zero Version is unknown.
type Version struct {
	Major, Minor, Patch uint32
	Security            uint32 // N of +svN: below it there is no way back
}

const versionLimit = 48 // bytes; four decimal numbers of 32 bits, and signs

// ParseVersion reads X.Y.Z+svN, and nothing else: no leading zeros, no
// pre-release, no other build metadata.
func ParseVersion(s string) (Version, error) {
	if len(s) > versionLimit {
		return Version{}, errors.New("version is longer than any can be")
	}
	bad := fmt.Errorf("version %q: want X.Y.Z+svN", s)
	release, security, ok := strings.Cut(s, "+sv")
	if !ok {
		return Version{}, bad
	}
	fields := append(strings.Split(release, "."), security)
	if len(fields) != 4 {
		return Version{}, bad
	}
	var n [4]uint32
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, 32)
		if err != nil || strconv.FormatUint(v, 10) != f {
			return Version{}, bad
		}
		n[i] = uint32(v)
	}
	return Version{n[0], n[1], n[2], n[3]}, nil
}

// String is the form that ParseVersion reads.
func (v Version) String() string {
	return fmt.Sprintf("%d.%d.%d+sv%d", v.Major, v.Minor, v.Patch, v.Security)
}

// MarshalText gives what String does; the zero Version is "".
func (v Version) MarshalText() ([]byte, error) {
	if v == (Version{}) {
		return nil, nil
	}
	return []byte(v.String()), nil
}

// UnmarshalText reads what MarshalText gives.
func (v *Version) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*v = Version{}
		return nil
	}
	*v, err = ParseVersion(string(b))
	return err
}

// Compare orders releases: negative when v came before w. The security version
// counts last, since it says nothing about age.
func (v Version) Compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Major, w.Major), cmp.Compare(v.Minor, w.Minor),
		cmp.Compare(v.Patch, w.Patch), cmp.Compare(v.Security, w.Security))
}
