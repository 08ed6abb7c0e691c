// Package version says which build of Birthmark this is, in both binaries.
package version

import (
	"crypto/fips140"
	"fmt"
	"runtime"

	"birthmark/pkg/clock"
)

// version is the version of this build; the linker sets it (-X).
var version = "dev"

// String is the version alone, as git describes it.
func String() string { return version }

// An Info is all that a bug report should say about a binary.
type Info struct {
	Version string `json:"version"`
	Built   string `json:"built"` // or the time of what it was built from, RFC 3339
	Go      string `json:"go"`
	Arch    string `json:"arch"`
	FIPS    string `json:"fips,omitempty"` // version of Go's FIPS 140-3 module, while in its mode
}

// This is about the binary that runs.
func This() Info {
	i := Info{version, clock.Build().UTC().Format("2006-01-02T15:04:05Z"), runtime.Version(), runtime.GOARCH, ""}
	if fips140.Enabled() {
		i.FIPS = fips140.Version()
	}
	return i
}

// String is the Info on one line.
func (i Info) String() string {
	line := fmt.Sprintf("%s, built %s, %s, %s", i.Version, i.Built, i.Go, i.Arch)
	if i.FIPS != "" {
		line += ", FIPS 140-3 module " + i.FIPS
	}
	return line
}
