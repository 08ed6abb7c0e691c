package clock

import (
	"testing"
	"time"
)

func TestHostBelievesAClockThatRuns(t *testing.T) {
	c := Host()
	c.system = func() time.Time { return c.build.Add(time.Hour) }
	if !c.Trusted() {
		t.Error("a clock after the build is not trusted")
	}
	c.system = func() time.Time { return time.Unix(0, 0) }
	if c.Trusted() && !synchronised() {
		t.Error("a clock in 1970 is trusted")
	}
}
