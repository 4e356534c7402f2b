package cooldown

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestFailuresInARowAreRememberedEverLonger: the first not at all, the second for a second, then
// twice as long each time; a success, or a long time without a failure, ends the row.
func TestFailuresInARowAreRememberedEverLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFailures(time.Second, 20*time.Second)
		broken := errors.New("broken")
		row := func(several bool) (pauses []time.Duration) {
			for range 8 {
				pause := f.Add("a", broken, several)
				if left, err := f.Get("a"); left != pause || (err == nil) != (pause == 0) {
					t.Errorf("remembered as %v for %s instead of %s", err, left, pause)
				}
				pauses = append(pauses, pause/time.Second)
				time.Sleep(pause)
				if left, err := f.Get("a"); err != nil || left != 0 || !f.Failed("a") {
					t.Errorf("after %s: %v, %s, failed lately: %v", pause, err, left, f.Failed("a"))
				}
			}
			return pauses
		}
		want := []time.Duration{0, 1, 2, 4, 8, 16, 20, 20}
		if got := row(false); !slices.Equal(got, want) {
			t.Errorf("pauses %v, want %v", got, want)
		}
		f.Forget("a")
		if f.Failed("a") {
			t.Error("a success doesn't end the row")
		}
		if got := row(true); !slices.Equal(got, append(want[1:], 20)) {
			t.Errorf("pauses %v when the first is several by itself", got)
		}
		time.Sleep(inARow + 1)
		if got := f.Add("a", broken, false); got != 0 {
			t.Errorf("after a long time one failure is remembered for %s", got)
		}
		if _, err := f.Get("b"); err != nil || f.Failed("b") {
			t.Error("another key has failed")
		}
	})
}

// TestFailuresAreBounded: clients can invent keys.
func TestFailuresAreBounded(t *testing.T) {
	f := NewFailures(time.Second, time.Minute)
	for i := range 2 * maxFailures {
		f.Add(fmt.Sprint(i), errors.New("broken"), true)
	}
	if n := f.keys.Len(); n != maxFailures {
		t.Errorf("%d keys are kept", n)
	}
	if _, err := f.Get(fmt.Sprint(2*maxFailures - 1)); err == nil {
		t.Error("the newest is forgotten")
	}
}
