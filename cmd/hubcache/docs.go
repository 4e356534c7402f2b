package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newDocsCommand is "hubcache docs", which writes what the packages and the documents have of the
// commands' help. It is hidden. What it writes depends on nothing but the commands.
func newDocsCommand(root *cobra.Command) *cobra.Command {
	docs := &cobra.Command{Use: "docs", Hidden: true, Short: "Documentation for packages"}
	docs.AddCommand(&cobra.Command{
		Use: "man DIR", Short: "Write the man pages into a folder", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return writeManPages(root, args[0]) },
	}, &cobra.Command{
		Use: "cli FILE", Short: "Write docs/use/cli.md", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var page bytes.Buffer
			page.WriteString(commandPageTop)
			for _, c := range documented(root) {
				if c.Parent() == nil || c.Parent().Name() != "completion" { // cobra's own text
					writeCommand(&page, c)
				}
			}
			return os.WriteFile(args[0], page.Bytes(), 0o644)
		},
	})
	return docs
}

// documented is root and the commands below it, but for those that are hidden.
func documented(root *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{root}
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			all = append(all, documented(c)...)
		}
	}
	return all
}

// writeManPages writes a page for each command, like hubcache-config-check.1, into a folder.
func writeManPages(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	for _, c := range documented(root) {
		var page bytes.Buffer
		// The header has a month, which would be that of the build.
		if err := doc.GenMan(c, &doc.GenManHeader{Section: "1", Source: "hubcache " + versionString(), Manual: "hubcache", Date: &time.Time{}}, &page); err != nil {
			return err
		}
		text := bytes.Replace(page.Bytes(), []byte((time.Time{}).Format(`"Jan 2006"`)), []byte(`""`), 1)
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

const commandPageTop = `# Commands

<!-- Written by "make docs" from the help of the commands. -->

What is here, ` + "`hubcache COMMAND --help`" + ` and the man pages say, too. Data goes to standard output,
progress and logs go to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but the
target was not reached, 75 not now.
`

// writeCommand writes the section of one command.
func writeCommand(w *bytes.Buffer, c *cobra.Command) {
	about := c.Long
	if about == "" {
		about = c.Short + "."
	}
	fmt.Fprintf(w, "\n## %s\n\n%s\n\n```text\n", c.CommandPath(), strings.ReplaceAll(strings.TrimSpace(about), "<", `\<`))
	if c.Runnable() && !c.HasAvailableSubCommands() {
		fmt.Fprintln(w, c.UseLine())
	} else {
		fmt.Fprintln(w, c.CommandPath()+" [command]")
	}
	fmt.Fprint(w, "```\n")
	if c.Example != "" {
		fmt.Fprintf(w, "\nExamples:\n\n```sh\n%s\n```\n", unindented(c.Example))
	}
	if c.HasAvailableLocalFlags() {
		fmt.Fprintf(w, "\nFlags:\n\n```text\n%s```\n", c.LocalFlags().FlagUsagesWrapped(helpColumns))
	}
}

// unindented is an example without the blanks that the help has before each line.
func unindented(example string) string {
	lines := strings.Split(example, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimPrefix(line, "  ")
	}
	return strings.Join(lines, "\n")
}
