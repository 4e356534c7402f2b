package cooldown

import (
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func TestMemoryForgetsWhenItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Memory
		broken := errors.New("broken")
		m.Add("a", time.Minute, broken)
		m.Add("b", 0, nil)
		m.Add("c", time.Hour, nil)
		if err, ok := m.Get("a"); err != broken || !ok || m.Has("b") || !m.Has("c") {
			t.Errorf("%v, %v; b %v, c %v", err, ok, m.Has("b"), m.Has("c"))
		}
		time.Sleep(time.Minute + 1)
		m.Forget("c")
		if m.Has("a") || m.Has("c") {
			t.Errorf("after a minute: a %v, c %v", m.Has("a"), m.Has("c"))
		}
		m.Add("d", time.Hour, nil)
		m.Add("e", time.Hour, nil)
		m.ForgetAll(func(key string) bool { return key == "d" })
		if m.Has("d") || !m.Has("e") {
			t.Errorf("forgotten: d %v, e %v", !m.Has("d"), !m.Has("e"))
		}
	})
}

// TestMemoryIsLimited: with more keys than it remembers it forgets the oldest, and no others.
func TestMemoryIsLimited(t *testing.T) {
	var m Memory
	for i := range 2*maxMemos + maxMemos/2 {
		m.Add(strconv.Itoa(i), time.Hour, nil)
		if oldest := max(0, i+1-maxMemos); !m.Has(strconv.Itoa(oldest)) || m.Has(strconv.Itoa(oldest-1)) {
			t.Fatalf("after %d keys: %d is remembered: %v, %d: %v", i+1, oldest, m.Has(strconv.Itoa(oldest)), oldest-1, m.Has(strconv.Itoa(oldest-1)))
		}
	}
}
