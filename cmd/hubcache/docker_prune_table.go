package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"

	"github.com/hubcache/hubcache/prune"
)

// writePruneTable prints the report as a table.
func writePruneTable(out io.Writer, r prune.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ACTION\tIMAGE\tSIZE\tLAST USE\tWHY")
	for _, v := range r.Images {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", action(v.Action, r.DryRun), imageName(v.Image),
			units.BytesSize(float64(v.Image.Size)), v.LastUse.Local().Format("2006-01-02 15:04"), v.Why)
	}
	fmt.Fprintln(w)
	for i, d := range r.Before {
		fmt.Fprintf(w, "%s\t%.1f%% full", d.Path, d.Full()*100)
		if i < len(r.After) && !r.DryRun {
			fmt.Fprintf(w, ", now %.1f%%", r.After[i].Full()*100)
		}
		fmt.Fprintf(w, " (starts above %.4g%%, stops at %.4g%%)\n", r.High*100, r.Low*100)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	line := string(r.Decision)
	if r.Reason != "" {
		line += ": " + r.Reason
	}
	if r.DryRun {
		line += "\nThis was a dry run; --apply deletes."
	}
	if !r.Watched {
		line += "\nhubcache docker watch is not running: last use is what runs of prune have seen."
	}
	_, err := fmt.Fprintln(out, line)
	return err
}

// action is what the table says that happens, or would happen, to an image.
func action(a prune.Action, dry bool) string {
	switch {
	case a == prune.Delete && dry:
		return "would go"
	case a == prune.Delete:
		return "deleted"
	case a == prune.Deletable:
		return "not needed"
	case a == prune.Skip:
		return "skipped"
	}
	return "stays"
}

// imageName is the first name of an image, with a short digest if it has one; of an image
// without a name, its short ID.
func imageName(img prune.Image) string {
	short := func(digest string) string { return digest[:min(len(digest), len("sha256:")+12)] }
	names := img.References()
	if len(names) == 0 {
		return short(img.ID)
	}
	name, digest, digested := strings.Cut(names[0], "@")
	if digested {
		name += "@" + short(digest)
	}
	if n := len(names) - 1; n > 0 && len(img.Tags) > 1 {
		name += fmt.Sprintf(" (+%d)", len(img.Tags)-1)
	}
	return name
}
