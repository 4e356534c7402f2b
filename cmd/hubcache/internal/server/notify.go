package server

import (
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// notify tells systemd the state, if systemd started this process. An error is ignored:
// there is nothing to do about it.
func notify(state string) { daemon.SdNotify(false, state) }

// monotonic is the time that systemd wants with RELOADING=1, in microseconds.
func monotonic() string {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return "0"
	}
	return strconv.FormatInt(ts.Nano()/1000, 10)
}

// watchdog tells systemd twice in each interval that the server is alive, until stop is
// called. Before each message it calls alive, which has to return; when it doesn't,
// systemd restarts the service.
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
