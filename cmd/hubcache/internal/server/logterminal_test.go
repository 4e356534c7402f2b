package server

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/registry"
)

// terminalLog returns what a log on a terminal shows of the lines that write makes, without the
// times.
func terminalLog(t *testing.T, write func(*slog.Logger)) string {
	t.Helper()
	var b bytes.Buffer
	write(slog.New(newTerminalHandler(&b, slog.LevelDebug)))
	var lines strings.Builder
	for line := range strings.Lines(b.String()) {
		at, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if _, err := time.Parse(time.TimeOnly, strings.TrimSuffix(strings.TrimPrefix(at, "\x1b[2m"), "\x1b[0m")); err != nil {
			t.Errorf("no time: %q", line)
		}
		lines.WriteString(rest + "\n")
	}
	return lines.String()
}

// request is a line of the access log.
func request(log *slog.Logger, level slog.Level, cache, reference string, status int, more ...any) {
	log.Log(context.Background(), level, registry.AccessLine, append([]any{"method", "GET", "kind", "manifest", "repository", "library/redis", "reference", reference,
		"status", status, "cache", cache, "bytes", int64(700), "took_ms", 4.998, "client", "10.0.0.5:36310"}, more...)...)
}

// TestLogOnATerminalIsForPeople: what the answer was and the image come first, in columns, and a
// line of an ordinary pull is short.
func TestLogOnATerminalIsForPeople(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	got := terminalLog(t, func(log *slog.Logger) {
		request(log, slog.LevelInfo, "miss", "7", 200)
		request(log, slog.LevelInfo, "revalidated", "sha256:eec60349ca39f235e760a8a967ba9811b85cb81b54a75346fbeeb81a92396d8a", 200)
		request(log, slog.LevelInfo, "error", "nope", 404, "error", "there is no such tag")
		request(log, slog.LevelInfo, "hit", "1", 200, "registry", "ghcr.io")
		request(log, slog.LevelInfo, "hit", "1", 200, "registry", "docker.io")
		log.Info("hubcache is ready", "listen", []string{"http://127.0.0.1:5000", "unix:/run/x"}, "budget", "20GiB")
		log.With("a", 1).WithGroup("g").Warn("a warning", "error", errors.New("disk full"), "took", 3*time.Second)
		log.Error("it failed", slog.Group("upstream", "host", "auth.docker.io"))
	})
	want := `miss        library/redis:7                          manifest      700B     5ms  10.0.0.5
revalidated library/redis@eec60349ca39               manifest      700B     5ms  10.0.0.5
404         library/redis:nope                       manifest      700B     5ms  10.0.0.5  there is no such tag
hit         ghcr.io/library/redis:1                  manifest      700B     5ms  10.0.0.5
hit         library/redis:1                          manifest      700B     5ms  10.0.0.5
hubcache is ready  listen=http://127.0.0.1:5000,unix:/run/x  budget=20GiB
WARN a warning  a=1  g.error=disk full  g.took=3s
ERROR it failed  upstream.host=auth.docker.io
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestLogOnATerminalHasColours, unless NO_COLOR is set or the terminal has none.
func TestLogOnATerminalHasColours(t *testing.T) {
	for _, c := range []struct {
		noColour, term string
		want           bool
	}{{"", "xterm", true}, {"1", "xterm", false}, {"", "dumb", false}} {
		t.Setenv("NO_COLOR", c.noColour)
		t.Setenv("TERM", c.term)
		got := terminalLog(t, func(log *slog.Logger) { request(log, slog.LevelInfo, "hit", "7", 200); log.Warn("x") })
		if strings.Contains(got, "\x1b[32mhit") != c.want || strings.Contains(got, "\x1b") != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// TestLogControlsNoTerminal: a client or an upstream can make no line that moves the cursor, sets a
// title or looks like another line.
func TestLogControlsNoTerminal(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	for _, evil := range []string{"\x1b[2J", "a\nb", "\r", "\x07", "\u009b31m", "\u202e", "\xff", "\x7f"} {
		got := terminalLog(t, func(log *slog.Logger) {
			request(log, slog.LevelWarn, evil, evil, 500, "error", evil, evil, evil)
			log.Info(evil+"\n", evil, evil, "error", errors.New(evil), "list", []string{evil}, "any", struct{ S string }{evil})
			log.With("x", evil).WithGroup(evil).Info("y", "z", evil)
		})
		if strings.Count(got, "\n") != 3 {
			t.Errorf("%q: not three lines: %q", evil, got)
		}
		if strings.Contains(strings.ReplaceAll(got, "\n", ""), evil) {
			t.Errorf("%q reaches the terminal: %q", evil, got)
		}
	}
}

// TestOddLinesOfTheAccessLogAreShown: keys may be missing or have other types.
func TestOddLinesOfTheAccessLogAreShown(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	got := terminalLog(t, func(log *slog.Logger) {
		log.Info(registry.AccessLine)
		log.Info(registry.AccessLine, "bytes", "many", "took_ms", 3, "status", 200, "kind", "base")
	})
	if strings.Count(got, "\n") != 2 || !strings.Contains(got, "200") {
		t.Errorf("%q", got)
	}
}
