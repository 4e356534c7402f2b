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

// TestHelpFits80Columns: no line of any help is longer, and every command has a short
// description.
func TestHelpFits80Columns(t *testing.T) {
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
		if !bytes.Contains(page, []byte(".SH NAME")) || bytes.Contains(page, []byte("Auto generated")) {
			t.Errorf("%s is no page, or differs from build to build", e.Name())
		}
	}
	for name := range want {
		t.Errorf("no page %s", name)
	}
}
