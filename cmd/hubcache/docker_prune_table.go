package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hubcache/hubcache/prune"
)

// The report fits a terminal of 80 columns.
const (
	reportWidth = 80
	nameWidth   = 40
	sizeWidth   = 8
	lastWidth   = reportWidth - 2 - nameWidth - 2 - sizeWidth - 2
)

// writePruneReport prints the report for people: first one line that says all, then what to know
// and to do about it, then the images, in groups by what happens to them and why.
func writePruneReport(out io.Writer, r prune.Report, now time.Time) error {
	var b strings.Builder
	wrap(&b, "", headline(r))
	if r.Decision == prune.Incomplete {
		wrap(&b, "", "Why not enough: "+whyNotEnough(r)+".")
		writeHelp(&b, r.Help)
	}
	for _, warning := range r.Warnings {
		wrap(&b, "", "Warning: "+warning+".")
	}
	if !r.Watched && len(r.Images) > 0 {
		wrap(&b, "", "hubcache docker watch is not running: only the uses that runs of prune have seen are known.")
	}
	if r.DryRun && r.Decision != prune.Failed {
		wrap(&b, "", "This was a dry run; --apply does it.")
	}
	for _, g := range groupsOf(r) {
		// A timer's runs mostly have nothing to do, and say so in a line or two.
		if r.DryRun || r.Decision != prune.NotNeeded && (r.Decision != prune.Deferred || deletedAny(r)) {
			g.write(&b, now)
		}
	}
	if len(r.Before) > 0 {
		b.WriteString("\n")
	}
	for i, d := range r.Before {
		text := fmt.Sprintf("%s: %s full", d.Path, percentOf(d.Full(), r))
		if i < len(r.After) && !r.DryRun && r.After[i] != d {
			text += ", now " + percentOf(r.After[i].Full(), r)
		}
		if d.Total > 0 && d.Full() > float64(d.Used)/float64(d.Total) {
			text += ", by the number of files"
		}
		wrap(&b, "", fmt.Sprintf("%s (starts above %s, stops at %s)", text, percentOf(r.High, r), percentOf(r.Low, r)))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// deletedAny reports whether the run has deleted an image.
func deletedAny(r prune.Report) bool {
	return slices.ContainsFunc(r.Images, prune.ImageDecision.Deleted)
}

// whyNotEnough explains why the low watermark isn't reached.
func whyNotEnough(r prune.Report) string {
	if !r.TooFew() {
		return r.Reason
	}
	stay := 0
	for _, d := range r.Images {
		if d.Action == prune.Keep || d.Action == prune.Skip {
			stay++
		}
	}
	switch stay {
	case 0:
		return "no other image is there"
	case 1:
		return "the other image stays, for the reason below"
	}
	return fmt.Sprintf("the other %s stay, for the reasons below", count(stay, "image"))
}

// headline is the one line that says what has happened, or would happen.
func headline(r prune.Report) string {
	before, after := fullest(r.Before), fullest(r.After)
	images := 0
	for _, d := range r.Images {
		if d.Action == prune.Delete {
			images++
		}
	}
	verb, freed := "freed", r.Freed()
	if r.DryRun {
		verb, freed = "would free", r.Predicted()
		after = predicted(r.Before, freed)
	}
	change := fmt.Sprintf("%s %s of %s: %s → %s", verb, size(freed), count(images, "image"), percentOf(before, r), percentOf(after, r))
	switch {
	case r.Decision == prune.Deferred && images > 0 && !r.DryRun:
		return fmt.Sprintf("%s; then stopped: %s", change, r.Reason)
	case r.Decision == prune.Deferred:
		return "not now: " + r.Reason
	case r.Decision == prune.Failed:
		return fmt.Sprintf("%s; then failed", change)
	case r.Decision == prune.NotNeeded:
		return fmt.Sprintf("nothing to do: %s full, and prune starts above %s", percentOf(before, r), percentOf(r.High, r))
	case r.Decision == prune.Incomplete && images == 0:
		return fmt.Sprintf("nothing to free: %s full, and no image may go (%s is wanted)", percentOf(before, r), percentOf(r.Low, r))
	case r.Decision == prune.Incomplete:
		return fmt.Sprintf("%s (%s is wanted)", change, percentOf(r.Low, r))
	}
	return change
}

// fullest returns the share of the fullest disk.
func fullest(disks []prune.Disk) (full float64) {
	for _, d := range disks {
		full = max(full, d.Full())
	}
	return full
}

// predicted returns how full the fullest disk would be after so many bytes are freed on it.
func predicted(disks []prune.Disk, bytes int64) float64 {
	disks = slices.Clone(disks)
	slices.SortFunc(disks, func(a, b prune.Disk) int { return int(math.Copysign(1, b.Full()-a.Full())) })
	if len(disks) > 0 {
		disks[0].Used -= min(bytes, disks[0].Used)
	}
	return fullest(disks)
}

// writeHelp says what else would free space.
func writeHelp(b *strings.Builder, help []prune.Help) {
	if len(help) == 0 {
		wrap(b, "", "Nothing else that Docker could free would help: see what else is on the disk.")
		return
	}
	b.WriteString("What would help:\n")
	for _, h := range help {
		fmt.Fprintf(b, "  %*s  %s\n", sizeWidth, size(h.Bytes), h.What)
	}
}

// group are the images to which the same happens for the same reason.
type group struct {
	title  string
	column string // the heading of the last column
	rows   []prune.ImageDecision
	last   func(d prune.ImageDecision, now time.Time) string
	bytes  func(d prune.ImageDecision) int64
	sized  string // the heading of the bytes
}

// groupsOf sorts the images into groups, in the order in which they first appear.
func groupsOf(r prune.Report) []*group {
	byTitle := map[string]*group{}
	var all []*group
	for _, d := range r.Images {
		title := titleOf(d, r.DryRun)
		g := byTitle[title]
		if g == nil {
			g = &group{title: title, column: "LAST USE", last: lastUse, sized: "SIZE", bytes: func(d prune.ImageDecision) int64 { return d.Image.Size }}
			switch {
			case d.Action == prune.Delete || d.Action == prune.Deletable:
				if r.Decision == prune.NotNeeded {
					break // what they free wasn't measured
				}
				g.sized, g.bytes = "FREES", func(d prune.ImageDecision) int64 { return d.Frees }
			case d.Action == prune.Skip || namedReason[d.Rule]:
				g.column, g.last = "BY", func(d prune.ImageDecision, _ time.Time) string { return shortWhy(d) }
			}
			byTitle[title] = g
			all = append(all, g)
		}
		g.rows = append(g.rows, d)
	}
	return all
}

// namedReason has the rules whose reason names something that differs from image to image.
var namedReason = map[prune.Rule]bool{
	prune.Rule(prune.UseContainer): true, prune.Rule(prune.UseMount): true, prune.Rule(prune.UseService): true,
	prune.Rule(prune.UseRollback): true, prune.RuleKeepList: true, prune.RuleNewest: true,
}

// shortWhy is the reason without the words that the heading of its group has.
func shortWhy(d prune.ImageDecision) string {
	why := d.Why
	for _, words := range []string{" uses it", " mounts it", " would roll back to it", "is the newest image of ", "the keep list has "} {
		why = strings.TrimPrefix(strings.TrimSuffix(why, words), words)
	}
	return why
}

// titleOf is the heading of the group that a decision belongs to.
func titleOf(d prune.ImageDecision, dry bool) string {
	switch {
	case d.Action == prune.Delete && dry:
		return "would go"
	case d.Action == prune.Delete:
		return "deleted"
	case d.Useless():
		return "may go, and would free nothing"
	case d.Action == prune.Deletable:
		return "may go, and need not"
	case d.Action == prune.Skip:
		return "left alone in the end"
	}
	if reason, ok := reasons[d.Rule]; ok {
		return "stays: " + reason
	}
	return "stays: " + d.Why
}

// reasons are the rules in words.
var reasons = map[prune.Rule]string{
	prune.Rule(prune.UseContainer): "a container uses it",
	prune.Rule(prune.UseMount):     "a container or service mounts it",
	prune.Rule(prune.UseService):   "a service uses it",
	prune.Rule(prune.UseRollback):  "a service would roll back to it",
	prune.RuleKeepList:             "it is on the keep list",
	prune.RuleChildren:             "another image was built on it",
	prune.RuleTag:                  "it has a tag, or is a base (--tagged lets it go)",
	prune.RuleUnreadable:           "the engine can't show it",
	prune.RuleWorker:               "this swarm node can't see the services",
	prune.RuleNewest:               "it is the newest of its repository",
	prune.RuleUnknown:              "it was never seen before",
	prune.RuleUsed:                 "it was used lately",
	prune.RuleArrived:              "it came lately",
	prune.RuleTagged:               "it was tagged lately",
}

// write prints the group. Images without a name that builds have left below others are one row.
func (g *group) write(b *strings.Builder, now time.Time) {
	var total, below int64
	var intermediates int
	var rows []prune.ImageDecision
	with := map[string]int64{} // by ID of the image with which others go: what these free
	for _, d := range g.rows {
		total += g.bytes(d)
		switch {
		case !d.Intermediate():
			rows = append(rows, d)
			continue
		case d.With != "" && g.sized == "FREES":
			with[d.With] += g.bytes(d)
		default:
			below += g.bytes(d)
		}
		intermediates++
	}
	title := fmt.Sprintf("%s: %s", g.title, count(len(g.rows), "image"))
	if g.sized == "FREES" { // sizes count shared layers several times
		title += ", " + size(total)
	}
	fmt.Fprintf(b, "\n%s\n", fit(title, reportWidth))
	if len(rows) > 0 {
		fmt.Fprintf(b, "  %-*s  %*s  %s\n", nameWidth, "IMAGE", sizeWidth, g.sized, g.column)
	}
	for _, d := range rows {
		g.row(b, fit(imageName(d.Image), nameWidth), size(g.bytes(d)+with[d.Image.ID]), fitEnd(g.last(d, now), lastWidth))
	}
	switch name := count(intermediates, "intermediate image") + " of builds"; {
	case intermediates > 0 && below == 0 && len(with) > 0:
		g.row(b, name, "", "counted above")
	case intermediates > 0:
		g.row(b, name, size(below), "")
	}
}

func (g *group) row(b *strings.Builder, name, bytes, last string) {
	line := fmt.Sprintf("  %s%s  %*s  %s", name, strings.Repeat(" ", max(0, nameWidth-utf8.RuneCountInString(name))), sizeWidth, bytes, last)
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}

// lastUse says when the image was last used, if that is known, and else when it was first seen.
func lastUse(d prune.ImageDecision, now time.Time) string {
	if d.Used.IsZero() {
		if d.FirstSeen.IsZero() {
			return "not known"
		}
		if now.Sub(d.FirstSeen) < moment {
			return "first seen now"
		}
		return "none seen in " + span(now.Sub(d.FirstSeen))
	}
	return span(now.Sub(d.Used)) + " ago"
}

// moment is the longest time that has no number in the report.
const moment = 2 * time.Minute

// span is a duration in words.
func span(d time.Duration) string {
	switch {
	case d < moment:
		return "a moment"
	case d < 2*time.Hour:
		return count(int(d.Minutes()), "minute")
	case d < 48*time.Hour:
		return count(int(d.Hours()), "hour")
	}
	return count(int(d.Hours()/24), "day")
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
	if len(img.Tags) > 1 {
		name += fmt.Sprintf(" (+%d)", len(img.Tags)-1)
	}
	return name
}

// fit shortens a text at its beginning: the end of an image's name tells more.
func fit(s string, width int) string {
	if runes := []rune(s); len(runes) > width {
		return "…" + string(runes[len(runes)-width+1:])
	}
	return s
}

// fitEnd shortens a text at its end.
func fitEnd(s string, width int) string {
	if runes := []rune(s); len(runes) > width {
		return string(runes[:width-1]) + "…"
	}
	return s
}

// wrap writes a text in lines that fit.
func wrap(b *strings.Builder, indent, text string) {
	line := indent
	for _, word := range strings.Fields(text) {
		switch {
		case line == indent:
			line += word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > reportWidth:
			b.WriteString(line + "\n")
			line = indent + "  " + word
		default:
			line += " " + word
		}
	}
	b.WriteString(line + "\n")
}

// count is a number of things in words.
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// size is a number of bytes in words, as Docker counts them.
func size(bytes int64) string {
	units, f := []string{"B", "kB", "MB", "GB", "TB", "PB"}, float64(bytes)
	i := 0
	for ; f >= 999.5 && i < len(units)-1; i++ {
		f /= 1000
	}
	if i > 0 && f < 9.95 {
		return fmt.Sprintf("%.1f %s", f, units[i])
	}
	return fmt.Sprintf("%.0f %s", f, units[i])
}

// percentOf is a share in percent, with a digit after the point only if it would look like a
// watermark without it.
func percentOf(share float64, r prune.Report) string {
	for _, mark := range []float64{r.High, r.Low} {
		if share != mark && math.Round(share*100) == math.Round(mark*100) {
			return fmt.Sprintf("%.1f %%", share*100)
		}
	}
	if share == r.High || share == r.Low {
		return fmt.Sprintf("%.4g %%", share*100)
	}
	return fmt.Sprintf("%.0f %%", share*100)
}
