package server

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// stderrFile is a file that takes the place of standard error. For named, JOURNAL_STREAM names it.
func stderrFile(t *testing.T, named bool) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if !named {
		st.Ino++
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino))
	return f
}

func linesOf(t *testing.T, f *os.File) []string {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// TestLinesForTheJournalBeginWithTheirLevel: every line does, of the log and of the error that
// ends the program, also one with several lines, and also through the server's batch.
func TestLinesForTheJournalBeginWithTheirLevel(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		f := stderrFile(t, true)
		b := &batch{w: f}
		if format == "text" {
			b.w = f
		}
		all := slog.New(batchHandler{logHandler(b, "text", slog.LevelDebug, toJournal(f)), b})
		if format == "json" {
			all = slog.New(batchHandler{logHandler(b, "json", slog.LevelDebug, toJournal(f)), b})
		}
		for _, log := range []*slog.Logger{all, all.With("a", "of several\nlines"), all.WithGroup("g")} {
			log.Debug("debug")
			log.Info("info")
			log.Warn("a warning\nof two lines")
			log.Error("error", "error", errors.New("one\ntwo"))
		}
		PrintError(f, errors.New("one\ntwo"))
		got, want := linesOf(t, f), []string{"<7>", "<6>", "<4>", "<3>", "<7>", "<6>", "<4>", "<3>", "<7>", "<6>", "<4>", "<3>", "<3>hubcache: one", "<3>two"}
		if len(got) != len(want) {
			t.Fatalf("%s: %d lines, want %d:\n%s", format, len(got), len(want), strings.Join(got, "\n"))
		}
		for i := range got {
			if !strings.HasPrefix(got[i], want[i]) {
				t.Errorf("%s: line %d is %q, want %s", format, i, got[i], want[i])
			}
		}
	}
}

// TestLevelIsKeptFromTheJournal: what isn't logged without the journal isn't logged for it.
func TestLevelIsKeptFromTheJournal(t *testing.T) {
	f := stderrFile(t, true)
	NewLogger(f).Debug("debug")
	NewLogger(f).Info("info")
	if got := linesOf(t, f); len(got) != 1 || !strings.HasPrefix(got[0], journalInfo) {
		t.Errorf("%q", got)
	}
}

// TestOtherFilesGetNoLevel: a service may write its log elsewhere, while systemd's variable is
// still set.
func TestOtherFilesGetNoLevel(t *testing.T) {
	f := stderrFile(t, false)
	NewLogger(f).Warn("a warning")
	PrintError(f, errors.New("an error"))
	for _, line := range linesOf(t, f) {
		if strings.HasPrefix(line, "<") {
			t.Errorf("%q", line)
		}
	}
	var text strings.Builder
	NewLogger(&text).Warn("a warning")
	if strings.HasPrefix(text.String(), "<") {
		t.Errorf("what is no file gets a level: %q", text.String())
	}
}
