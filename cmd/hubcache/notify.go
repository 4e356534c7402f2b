package main

import (
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// notify tells systemd, if it started us, and ignores that it can't.
func notify(state string) { daemon.SdNotify(false, state) }

func notifyReady() { notify(daemon.SdNotifyReady) }

// monotonic is the time that systemd wants with RELOADING=1.
func monotonic() string {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return "0"
	}
	return strconv.FormatInt(ts.Nano()/1000, 10)
}

// watchdog tells systemd twice per interval that we live, until stop. alive returns when
// that is so: systemd ends a server in which it hangs.
func watchdog(alive func()) (stop func()) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		return func() {}
	}
	t, done := time.NewTicker(interval/2), make(chan struct{})
	go func() {
		for {
			select {
			case <-t.C:
				alive()
				notify(daemon.SdNotifyWatchdog)
			case <-done:
				t.Stop()
				return
			}
		}
	}()
	return func() { close(done) }
}
