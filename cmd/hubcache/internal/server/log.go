package server

import (
	"io"
	"log/slog"
	"os"

	"golang.org/x/term"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// forPeople is the format of text on a terminal. It is no value of the setting.
const forPeople settings.LogFormat = "terminal"

// NewLogger is the log of the commands other than serve: for people on a terminal, else JSON, with
// levels for systemd's journal.
func NewLogger(w io.Writer) *slog.Logger {
	return slog.New(logHandler(w, logFormat(w, ""), slog.LevelInfo, toJournal(w)))
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// logFormat is the format that is set; if none is, text on a terminal, else JSON. Text on a terminal
// is for people.
func logFormat(w io.Writer, format settings.LogFormat) settings.LogFormat {
	if (format == "" || format == "text") && IsTerminal(w) {
		return forPeople
	}
	return format
}

// logHandler logs for people, as text or, if format says anything else, as JSON. For the journal each line
// begins with its level.
func logHandler(w io.Writer, format settings.LogFormat, level slog.Leveler, journal bool) slog.Handler {
	if journal {
		return newJournalHandler(w, func(w io.Writer) slog.Handler { return logHandler(w, format, level, false) })
	}
	o := &slog.HandlerOptions{Level: level}
	switch format {
	case forPeople:
		return newTerminalHandler(w, level)
	case "text":
		return slog.NewTextHandler(w, o)
	}
	return slog.NewJSONHandler(w, o)
}
