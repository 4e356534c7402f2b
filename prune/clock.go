package prune

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockMark is one moment on two clocks: the one that people set, and the one that counts from the
// start of the machine, while it sleeps too, and can't be set.
type clockMark struct {
	Wall time.Time     `json:"wall"`
	Up   time.Duration `json:"up"`
	Boot string        `json:"boot"` // differs after each start of the machine
}

const (
	// clockSlack is by how much the two clocks may differ between two batches, and clockDrift the
	// share of the time between them: NTP makes a clock faster or slower by half a thousandth.
	clockSlack = 2 * time.Minute
	clockDrift = 1000 // one thousandth

	// longestOff is how long a machine may have been off. After a start nothing but the set
	// clock says how long it was. One that is off for longer, or whose clock was wrong by more,
	// has used its images in the meantime, as far as anybody knows.
	longestOff = 30 * 24 * time.Hour
)

// readClock reads the clock that can't be set.
func readClock() (clockMark, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return clockMark{}, fmt.Errorf("the ID of this start of the machine: %w", err)
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return clockMark{}, fmt.Errorf("the clock of this start of the machine: %w", err)
	}
	return clockMark{Up: time.Duration(ts.Nano()), Boot: strings.TrimSpace(string(boot))}, nil
}

// mark returns this moment, which is now on the clock that people set.
func (u Uses) mark(now time.Time) (clockMark, error) {
	read := u.clock
	if read == nil {
		read = readClock
	}
	m, err := read()
	m.Wall = now.Round(0) // the difference to another has to be that of the set clock
	return m, err
}

// jumped reports whether the clock was set between two moments.
func (m clockMark) jumped(later clockMark) bool {
	passed := later.Wall.Sub(m.Wall)
	if m.Boot != later.Boot {
		return passed > longestOff || passed < -clockSlack
	}
	up := later.Up - m.Up
	return (passed - up).Abs() > clockSlack+up.Abs()/clockDrift
}

// checkClock counts a use of every image if the clock was set since the last batch.
func (r *records) checkClock(now clockMark) error {
	if b := r.meta.Get(clockKey); b != nil {
		var last clockMark
		if err := json.Unmarshal(b, &last); err != nil {
			return err
		}
		if last.jumped(now) {
			if err := r.addUseOfAll(now.Wall); err != nil {
				return err
			}
		}
	}
	b, err := json.Marshal(now)
	if err != nil {
		return err
	}
	return r.meta.Put(clockKey, b)
}
