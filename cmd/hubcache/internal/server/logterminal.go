package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/registry"
)

// terminalHandler logs for people at a terminal: a line of the access log has what the answer was
// and the image first, in columns; other lines have their message first. Nothing that a client or
// an upstream has made controls the terminal.
type terminalHandler struct {
	w      io.Writer
	mu     *sync.Mutex // guards writes to w; no other lock is taken under it
	level  slog.Leveler
	colour bool
	prefix string      // of the keys: the groups, each with a dot
	attrs  []slog.Attr // of WithAttrs, with whole keys
}

// newTerminalHandler returns a handler for a terminal w.
func newTerminalHandler(w io.Writer, level slog.Leveler) slog.Handler {
	colour := os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return &terminalHandler{w: w, mu: &sync.Mutex{}, level: level, colour: colour}
}

// NewTerminalLogger is the log of a command on a terminal, from a level on.
func NewTerminalLogger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(newTerminalHandler(w, level))
}

// Enabled implements slog.Handler.
func (h *terminalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// WithAttrs implements slog.Handler.
func (h *terminalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = append([]slog.Attr{}, h.attrs...)
	for _, a := range attrs {
		next.attrs = h.flat(next.attrs, h.prefix, a)
	}
	return &next
}

// WithGroup implements slog.Handler.
func (h *terminalHandler) WithGroup(name string) slog.Handler {
	next := *h
	if name != "" {
		next.prefix += name + "."
	}
	return &next
}

// flat adds an attribute to all, those of a group one by one.
func (h *terminalHandler) flat(all []slog.Attr, prefix string, a slog.Attr) []slog.Attr {
	a.Value = a.Value.Resolve()
	if a.Value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range a.Value.Group() {
			all = h.flat(all, prefix, member)
		}
		return all
	}
	if a.Equal(slog.Attr{}) {
		return all
	}
	return append(all, slog.Attr{Key: prefix + a.Key, Value: a.Value})
}

// The colours are those of the terminal's own palette.
const (
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// painted is text in a colour, if there are any.
func (h *terminalHandler) painted(colour, text string) string {
	if !h.colour || colour == "" || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// Handle implements slog.Handler.
func (h *terminalHandler) Handle(_ context.Context, r slog.Record) error {
	attrs := append([]slog.Attr{}, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		attrs = h.flat(attrs, h.prefix, a)
		return true
	})
	var b strings.Builder
	if !r.Time.IsZero() {
		b.WriteString(h.painted(faint, r.Time.Local().Format(time.TimeOnly)) + " ")
	}
	if r.Message == registry.AccessLine {
		b.WriteString(h.access(r.Level, attrs))
	} else {
		b.WriteString(h.message(r.Level, r.Message, attrs))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.w, strings.TrimRight(b.String(), " ")+"\n")
	return err
}

// message is a line that isn't of the access log.
func (h *terminalHandler) message(l slog.Level, message string, attrs []slog.Attr) string {
	var b strings.Builder
	switch {
	case l >= slog.LevelError:
		b.WriteString(h.painted(red, "ERROR "))
	case l >= slog.LevelWarn:
		b.WriteString(h.painted(yellow, "WARN "))
	case l < slog.LevelInfo:
		b.WriteString(h.painted(faint, "debug "))
	}
	b.WriteString(harmless(strings.TrimSuffix(message, "\n")))
	for _, a := range attrs {
		b.WriteString("  " + h.painted(faint, harmless(a.Key)+"=") + shown(a.Value))
	}
	return b.String()
}

// The widths of the columns of the access log. What is longer moves the rest of its line.
const (
	outcomeColumn = 11 // "revalidated"
	imageColumn   = 40
	kindColumn    = 8 // "manifest"
)

// access is a line of the access log: "miss  library/redis:7  manifest  700B  5ms  127.0.0.1".
func (h *terminalHandler) access(l slog.Level, attrs []slog.Attr) string {
	by := map[string]slog.Value{}
	for _, a := range attrs {
		by[a.Key] = a.Value
	}
	text := func(key string) string {
		if v, ok := by[key]; ok {
			return shown(v)
		}
		return ""
	}
	outcome, colour := text("cache"), ""
	switch outcome {
	case string(registry.OutcomeHit), string(registry.OutcomeRevalidated), string(registry.OutcomeShared):
		colour = green
	case string(registry.OutcomeStale):
		colour = yellow
	case string(registry.OutcomeError), "":
		outcome = text("status")
		if l >= slog.LevelWarn {
			colour = red
		}
	}
	sent := ""
	if v, ok := by["bytes"]; ok && v.Kind() == slog.KindInt64 {
		sent = units.BytesSize(float64(v.Int64()))
	}
	what := text("kind")
	if text("method") == "HEAD" {
		sent = "HEAD"
	}
	client := text("client")
	if host, _, err := net.SplitHostPort(client); err == nil {
		client = host
	}
	if name := text("client_name"); name != "" {
		client += " (" + name + ")"
	}
	took := ""
	if v, ok := by["took_ms"]; ok && v.Kind() == slog.KindFloat64 {
		took = roughly(time.Duration(v.Float64() * float64(time.Millisecond)))
	}
	line := h.painted(colour, fmt.Sprintf("%-*s", outcomeColumn, outcome)) +
		fmt.Sprintf(" %-*s %-*s %9s %7s  %s", imageColumn, image(text("registry"), text("repository"), text("reference")), kindColumn, what, sent, took, client)
	if e := text("error"); e != "" {
		line += "  " + h.painted(colour, e)
	}
	return line
}

// image is a reference as people write it, with as much of a digest as docker shows. The name of
// Docker Hub is left out.
func image(registry, repository, reference string) string {
	if registry != "" && registry != settings.Hub && repository != "" {
		repository = registry + "/" + repository
	}
	_, hex, isDigest := strings.Cut(reference, ":")
	switch {
	case isDigest:
		return repository + "@" + hex[:min(12, len(hex))]
	case reference == "":
		return repository
	}
	return repository + ":" + reference
}

// roughly is a duration with two or three digits.
func roughly(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Microsecond).String()
}

// shown is a value as text, in quotation marks where it has to be.
func shown(v slog.Value) string {
	switch list, isList := v.Any().([]string); {
	case isList:
		return harmless(strings.Join(list, ","))
	case v.Kind() == slog.KindTime:
		return v.Time().Local().Format(time.DateTime)
	}
	return harmless(v.String())
}

// harmless is text without what could control a terminal: such text is written as Go does it.
func harmless(text string) string {
	odd := func(r rune) bool { return !strconv.IsPrint(r) }
	if !utf8.ValidString(text) || strings.ContainsFunc(text, odd) {
		return strconv.Quote(text)
	}
	return text
}
