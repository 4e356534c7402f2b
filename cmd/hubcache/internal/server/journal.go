package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The levels of sd-daemon(3), with which a line for systemd's journal begins. The journal takes
// them away, and knows from them which lines journalctl -p shows.
const (
	journalError   = "<3>"
	journalWarning = "<4>"
	journalInfo    = "<6>"
	journalDebug   = "<7>"
)

// toJournal reports whether what is written to w reaches systemd's journal: systemd says in
// JOURNAL_STREAM which file that is. A variable that was inherited names another file, once
// standard error is redirected.
func toJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	stream := os.Getenv("JOURNAL_STREAM")
	if !ok || stream == "" {
		return false
	}
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// journalHandler begins each line with its level. It has a handler for each level, because a
// handler doesn't tell its writer which line it is.
type journalHandler [4]slog.Handler

// newJournalHandler returns a handler whose lines are made by what handler returns.
func newJournalHandler(w io.Writer, handler func(io.Writer) slog.Handler) slog.Handler {
	var h journalHandler
	for i, level := range []string{journalDebug, journalInfo, journalWarning, journalError} {
		h[i] = handler(&leveled{w: w, level: level})
	}
	return h
}

func (h journalHandler) of(l slog.Level) slog.Handler {
	switch {
	case l < slog.LevelInfo:
		return h[0]
	case l < slog.LevelWarn:
		return h[1]
	case l < slog.LevelError:
		return h[2]
	}
	return h[3]
}

// Enabled implements slog.Handler.
func (h journalHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.of(l).Enabled(ctx, l)
}

// Handle implements slog.Handler.
func (h journalHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.of(r.Level).Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	for i := range h {
		h[i] = h[i].WithAttrs(attrs)
	}
	return h
}

// WithGroup implements slog.Handler.
func (h journalHandler) WithGroup(name string) slog.Handler {
	for i := range h {
		h[i] = h[i].WithGroup(name)
	}
	return h
}

// leveled begins what is written to it with a level. The handlers of log/slog write each line
// with one call, and make one call at a time.
type leveled struct {
	w     io.Writer
	level string
	line  []byte // used again for each line
}

func (l *leveled) Write(p []byte) (int, error) {
	l.line = append(append(l.line[:0], l.level...), p...)
	if n, err := l.w.Write(l.line); err != nil {
		return max(n-len(l.level), 0), err
	}
	return len(p), nil
}

// PrintError prints the error with which the program ends. In the journal all of its lines are
// errors.
func PrintError(w io.Writer, err error) {
	text := "hubcache: " + err.Error()
	if toJournal(w) {
		text = journalError + strings.ReplaceAll(text, "\n", "\n"+journalError)
	}
	fmt.Fprintln(w, text)
}
