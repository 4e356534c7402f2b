package server

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/registry"
)

// TestOnlyTheAccessLogWaits: lines of the access log wait a moment. Everything else is
// written at once, after the lines that came before it.
func TestOnlyTheAccessLogWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		b := &batch{w: &out}
		log := slog.New(batchHandler{slog.NewTextHandler(b, nil), b}).With("from", "test")
		text := func() string {
			synctest.Wait()
			b.mu.Lock()
			defer b.mu.Unlock()
			return out.String()
		}
		lines := func() int { return strings.Count(text(), "\n") }

		log.Info(registry.AccessLine, "n", 1)
		if n := lines(); n != 0 {
			t.Errorf("%d lines at once", n)
		}
		time.Sleep(batchFor)
		if n := lines(); n != 1 {
			t.Errorf("%d lines after %v", n, batchFor)
		}
		log.Info(registry.AccessLine, "n", 2)
		log.Info("something else", "n", 3)
		if n := lines(); n != 3 || !strings.HasSuffix(text(), "n=3\n") {
			t.Errorf("another line waits, or comes before earlier ones:\n%s", text())
		}
		log.Warn(registry.AccessLine, "n", 4)
		if n := lines(); n != 4 {
			t.Errorf("a failed request waits:\n%s", text())
		}
		b.mu.Lock()
		out.Reset()
		b.mu.Unlock()
		for range 1000 {
			log.Info(registry.AccessLine, "padding", strings.Repeat("x", 100))
		}
		if n := lines(); n < 500 {
			t.Errorf("only %d of 1000 lines: it gathers without a limit", n)
		}
		time.Sleep(batchFor)
		if n := lines(); n != 1000 {
			t.Errorf("%d of 1000 lines", n)
		}
	})
}
