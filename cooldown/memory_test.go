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
	})
}

func TestMemoryIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Memory
		for i := range maxMemos / 2 {
			m.Add("old"+strconv.Itoa(i), time.Second, nil)
		}
		time.Sleep(2 * time.Second)
		m.Add("kept", time.Hour, nil)
		for i := range maxMemos / 2 {
			m.Add("new"+strconv.Itoa(i), time.Hour, nil)
		}
		if !m.Has("kept") {
			t.Error("the expired ones were not swept first")
		}
		for i := range maxMemos {
			m.Add("more"+strconv.Itoa(i), time.Hour, nil)
		}
		if n := len(m.m); n > maxMemos {
			t.Errorf("%d are remembered, and %d is the limit", n, maxMemos)
		}
	})
}
