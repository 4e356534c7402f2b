package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/name"
)

func newInspectCommand(l *settings.Loader) *cobra.Command {
	var (
		find   *adminclient.Finder
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "inspect REF",
		Short: "Show what is cached of one image",
		Long: `Shows what the running server has of one image: its platforms and layers, which
of them are here, when they came and under which repositories Docker Hub served
them, and with which images it shares them. FREES is what only this image
needs: what its eviction would free.`,
		Example: "  hubcache inspect redis:7\n  hubcache inspect --json ghcr.io/org/app:1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := wholeReferences(cmd.Context(), find, args)
			if err != nil {
				return err
			}
			ref, err := parseReference(args[0])
			if err != nil {
				return err
			}
			c, err := find.Find()
			if err != nil {
				return err
			}
			var doc admin.Inspected
			if err := c.Do(cmd.Context(), http.MethodGet, "/api/v1/images/"+ref.String(), nil, &doc); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), doc)
			}
			return printInspected(cmd.OutOrStdout(), doc, time.Now())
		},
	}
	find = bindAdmin(cmd, l)
	cmd.ValidArgsFunction = completeReferences(find, 1)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the document of GET /api/v1/images/<reference>")
	return cmd
}

// printInspected prints the image, its manifests and their parts, and what it shares.
func printInspected(out io.Writer, doc admin.Inspected, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, line := range summary(doc, now) {
		fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
	}
	w.Flush() // what it writes to is looked at below
	for _, m := range doc.Manifests {
		printManifest(out, m, now)
	}
	if len(doc.SharedWith) > 0 {
		fmt.Fprintf(out, "\nSHARES WITH %s\n", plural(int64(doc.Sharers), "image"))
		for _, s := range doc.SharedWith {
			fmt.Fprintf(w, "  %s\t%s\n", shortReference(s.Reference), human(s.Bytes))
		}
		if more := doc.Sharers - len(doc.SharedWith); more > 0 {
			fmt.Fprintf(w, "  and %d more\n", more)
		}
	}
	return w.Flush()
}

// summary is what is said of the image as a whole, by line.
func summary(doc admin.Inspected, now time.Time) (lines [][2]string) {
	add := func(title, format string, args ...any) {
		lines = append(lines, [2]string{title, fmt.Sprintf(format, args...)})
	}
	ago := func(t time.Time) string { return inWords(now.Sub(t)) + " ago" }
	add("IMAGE", "%s", doc.Reference)
	add("DIGEST", "%s", doc.Digest)
	state := "complete"
	if !doc.Complete {
		state = "partial"
	}
	add("STATE", "%s", state)
	add("SIZE", "%s, of which %s are shared", human(doc.Bytes), human(doc.Shared))
	add("FREES", "%s", human(doc.Freed))
	pinned := "no"
	switch {
	case doc.Protected:
		pinned = "yes"
	case doc.Pinned:
		pinned = "no room"
	}
	add("PINNED", "%s", pinned)
	add("PULLS", "%d", doc.Pulls)
	add("LAST USE", "%s", ago(doc.LastUse))
	if doc.Checked != nil {
		add("CHECKED", "%s", ago(*doc.Checked))
	}
	if doc.Waiting != nil {
		add("IN QUARANTINE", "%s, for %s", shortDigestOf(doc.Waiting.Digest), inWords(max(doc.Waiting.Until.Sub(now), 0)))
	}
	visibility := doc.Visibility
	if doc.VisibilityAt != nil {
		visibility += ", as of " + ago(*doc.VisibilityAt)
	}
	add("REPOSITORY", "%s", visibility)
	return lines
}

// printManifest prints a manifest and its parts. The last Flush of the caller tells whether out can
// be written.
func printManifest(out io.Writer, m admin.ImageManifest, now time.Time) {
	title := printable(m.Platform)
	switch {
	case m.Attests != "":
		title = "attestation of " + shortDigestOf(m.Attests)
	case title == "":
		title = "no platform"
	}
	fmt.Fprintf(out, "\n%s  %s  %s", title, shortDigestOf(m.Digest), m.State)
	if m.Size > 0 {
		fmt.Fprintf(out, ", %s of %s", human(m.Cached), human(m.Size))
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	if len(m.Parts) > 0 {
		fmt.Fprintln(w, "  PART\tDIGEST\tSIZE\tSTATE\tCAME\tFROM\tSHARED")
	}
	for _, p := range m.Parts {
		state := p.State
		if p.State == "partial" {
			state += ", " + human(p.Cached)
		}
		arrived := "-"
		if p.Arrived != nil {
			arrived = inWords(now.Sub(*p.Arrived)) + " ago"
		}
		from := "-"
		if len(p.Repositories) > 0 {
			var short []string
			for _, r := range p.Repositories {
				short = append(short, name.Familiar(r))
			}
			from = strings.Join(short, ", ")
		}
		shared := "no"
		if p.Sharers > 0 {
			shared = "with " + plural(int64(p.Sharers), "image")
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Role, shortDigestOf(p.Digest), human(p.Size), state, arrived, from, shared)
	}
	w.Flush()
}

// shortDigestOf shortens a digest, but for its algorithm. What an attestation is of may be any text.
func shortDigestOf(digest string) string {
	algorithm, _, _ := strings.Cut(digest, ":")
	return printable(algorithm + ":" + shortDigest(digest))
}
