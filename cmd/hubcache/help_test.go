package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// everyCommand is root and all commands below it.
func everyCommand(root *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{root}
	for _, c := range root.Commands() {
		all = append(all, everyCommand(c)...)
	}
	return all
}

// helpLines is how many lines a help may have: more than a terminal's 24, which a command with
// twenty flags can't do, and no more than a window of a desktop has.
const helpLines = 40

// TestHelpFitsAScreen: no help has a longer line or more lines, and every command has a short
// description and an example.
func TestHelpFitsAScreen(t *testing.T) {
	for _, c := range everyCommand(newRootCommand()) {
		if strings.HasPrefix(c.CommandPath(), "hubcache completion ") {
			continue // cobra's own text
		}
		var out bytes.Buffer
		c.SetOut(&out)
		if err := c.Help(); err != nil {
			t.Fatal(err)
		}
		if c.Short == "" {
			t.Errorf("%s: no short help", c.CommandPath())
		}
		if !c.Hidden && c.Parent() != nil && c.Parent().Name() != "docs" && c.Example == "" {
			t.Errorf("%s: no example", c.CommandPath())
		}
		if n := strings.Count(out.String(), "\n"); n > helpLines {
			t.Errorf("%s --help has %d lines, and %d fit", c.CommandPath(), n, helpLines)
		}
		for line := range strings.Lines(out.String()) {
			if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > 80 {
				t.Errorf("%s --help: %s", c.CommandPath(), line)
			}
		}
	}
}

// TestManPages: every command has one, but for hidden commands.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("STATE_DIRECTORY", "/home/jane/cache") // the default of data_dir
	root := newRootCommand()
	root.SetArgs([]string{"docs", "man", dir})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	hidden, _, err := root.Find([]string{"docs"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range everyCommand(root) {
		if c.IsAvailableCommand() && c.Name() != "help" && c.Parent() != hidden {
			want[strings.ReplaceAll(c.CommandPath(), " ", "-")+".1"] = true
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !want[e.Name()] {
			t.Errorf("a page of a hidden command: %s", e.Name())
		}
		delete(want, e.Name())
		page, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(page, []byte("/home/jane")) {
			t.Errorf("%s names a folder of the machine that built it", e.Name())
		}
		title := `.TH "` + strings.ToUpper(strings.TrimSuffix(e.Name(), ".1")) + `" "1" "" "hubcache`
		if !bytes.Contains(page, []byte(".SH NAME")) || !bytes.Contains(page, []byte(title)) {
			t.Errorf("%s is no page with the title %s, which has no date: %.200s", e.Name(), title, page)
		}
	}
	for name := range want {
		t.Errorf("no page %s", name)
	}
}
