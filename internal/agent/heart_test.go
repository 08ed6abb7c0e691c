package agent

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestAPartThatIsLateIsStuck holds that nothing but silence makes a part stuck, and
// that each is named.
func TestAPartThatIsLateIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{}
		stuck := func(want string) {
			t.Helper()
			if got := fmt.Sprint(a.Stuck()); got != want {
				t.Errorf("stuck are %s, want %s", got, want)
			}
		}
		stuck("[]")
		a.heart.beat(loopPart, time.Minute)
		a.heart.beat(linkPart, 10*time.Second)
		time.Sleep(10 * time.Second)
		stuck("[]")
		time.Sleep(time.Second)
		stuck("[{link 1s}]")
		a.heart.beat(linkPart, time.Hour)
		stuck("[]")
		time.Sleep(time.Hour + time.Second)
		stuck("[{link 1s} {loop 59m12s}]")
		a.heart.rest(loopPart)
		stuck("[{link 1s}]")
	})
}
