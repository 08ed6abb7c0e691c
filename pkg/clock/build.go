package clock

import (
	"runtime/debug"
	"strconv"
	"sync"
	"time"
)

// buildTime is set by the linker (-X) to the moment of the build, or of the
// commit that is built, in seconds since 1970.
var buildTime string

// written is when this package was written: no build of it is older.
var written = time.Date(2026, time.November, 24, 0, 0, 0, 0, time.UTC)

// Build is when this binary was built, as far as it knows: what the linker was
// told, else the time of the commit it was built from, else a constant.
var Build = sync.OnceValue(func() time.Time {
	var commit string
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				commit = s.Value
			}
		}
	}
	return builtAt(buildTime, commit)
})

// builtAt chooses between what the linker and what the version control says.
// What cannot be read, or is older than the code, is not believed.
func builtAt(linker, commit string) time.Time {
	if sec, err := strconv.ParseInt(linker, 10, 64); err == nil && sec > written.Unix() {
		return time.Unix(sec, 0).UTC()
	}
	if t, err := time.Parse(time.RFC3339, commit); err == nil && t.After(written) {
		return t.UTC()
	}
	return written
}
