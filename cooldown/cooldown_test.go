package cooldown

import (
	"testing"
	"time"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func minutes(n int) time.Duration { return time.Duration(n) * time.Minute }

func TestUnnamedPausesDoubleUpToTheMost(t *testing.T) {
	p := Pause{First: minutes(1), Most: minutes(15)}
	now := noon
	for i, want := range []int{1, 2, 4, 8, 15, 15} {
		if got := p.Begin(0, now); got != minutes(want) || p.Left(now) != got || !p.Until().Equal(now.Add(got)) {
			t.Errorf("pause %d: %s, %s left; want %d min", i, got, p.Left(now), want)
		}
		now = p.Until()
		if left := p.Left(now); left != 0 {
			t.Errorf("pause %d: %s left at its end", i, left)
		}
	}
	p.Reset()
	if got := p.Begin(-time.Second, now); got != minutes(1) {
		t.Errorf("after Reset: %s", got)
	}
}

func TestNamedPauseLengthensAndNeverShortens(t *testing.T) {
	p := Pause{First: minutes(1), Most: minutes(15)}
	for _, c := range []struct{ wait, left int }{{5, 5}, {2, 5}, {60, 60}} {
		if got := p.Begin(minutes(c.wait), noon); got != minutes(c.wait) || p.Left(noon) != minutes(c.left) {
			t.Errorf("%d min named: %s, %s left; want %d min", c.wait, got, p.Left(noon), c.left)
		}
	}
	// It doesn't count for the doubling.
	if got := p.Begin(0, p.Until()); got != minutes(1) {
		t.Errorf("the first unnamed pause is %s", got)
	}
}

func TestAnswersThatCameTogetherCountOnce(t *testing.T) {
	p := Pause{First: minutes(1), Most: minutes(15)}
	p.Begin(0, noon)
	for s := range 59 {
		now := noon.Add(time.Duration(s+1) * time.Second)
		if got, want := p.Begin(0, now), noon.Add(minutes(1)).Sub(now); got != want {
			t.Fatalf("after %d s: %s; want %s", s+1, got, want)
		}
	}
	if got := p.Begin(0, noon.Add(minutes(1))); got != minutes(2) {
		t.Errorf("the next pause: %s; want 2 min", got)
	}
}

func TestResetLeavesThePauseUnderWay(t *testing.T) {
	p := Pause{First: minutes(1), Most: minutes(15)}
	p.Begin(0, noon)
	p.Reset()
	if left := p.Left(noon); left != minutes(1) {
		t.Errorf("%s left", left)
	}
}

func TestZeroPauseKnowsNamedLengthsOnly(t *testing.T) {
	var p Pause
	if got := p.Begin(0, noon); got != 0 || p.Left(noon) != 0 {
		t.Errorf("unnamed: %s, %s left", got, p.Left(noon))
	}
	p = Pause{}
	if !p.Until().IsZero() {
		t.Errorf("ends %s before it began", p.Until())
	}
	if got := p.Begin(minutes(3), noon); got != minutes(3) || p.Left(noon) != minutes(3) {
		t.Errorf("named: %s, %s left", got, p.Left(noon))
	}
}
