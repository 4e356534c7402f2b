package main

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hubcache/hubcache/prune"
)

// TestPruneExitCodes has the exit codes that need no engine. The integration tests have
// the others.
func TestPruneExitCodes(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("docker: {host: unix:///does/not/exist.sock}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want int
	}{
		{nil, 1}, // no engine answers
		{[]string{"--high-watermark", "85"}, 2},
		{[]string{"--high-watermark", "50%"}, 2}, // below the low one
		{[]string{"--keep", "[redis"}, 2},
		{[]string{"--min-age", "soon"}, 2},
		{[]string{"--no-such-flag"}, 2},
		{[]string{"image"}, 2},
	} {
		var out, errs bytes.Buffer
		args := append([]string{"--config", config, "docker", "prune"}, test.args...)
		if got := run(args, nil, &out, &errs); got != test.want {
			t.Errorf("%q: exit code %d, want %d\n%s", test.args, got, test.want, errs.String())
		}
	}
	for decision, want := range map[prune.Decision]int{prune.Pruned: 0, prune.NotNeeded: 0, prune.Incomplete: 3, prune.Deferred: 75} {
		code, _ := errors.AsType[exitCode](pruneExit(decision))
		if int(code) != want {
			t.Errorf("%s: exit code %d, want %d", decision, code, want)
		}
	}
}

// TestPruneFailurePrintsOneError and no table.
func TestPruneFailurePrintsOneError(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("docker: {host: unix:///does/not/exist.sock}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if code := run([]string{"--config", config, "docker", "prune"}, nil, &out, &errs); code != 1 || out.Len() > 0 || strings.Count(errs.String(), "\n") != 1 {
		t.Errorf("exit code %d, output %q, errors %q", code, out.String(), errs.String())
	}
}

// TestPruneDoesntWaitForACacheThatNobodyRuns: the package sets docker.admin, and its service may be
// disabled. A cache that listens and doesn't answer may have transfers in flight.
func TestPruneDoesntWaitForACacheThatNobodyRuns(t *testing.T) {
	dir := t.TempDir()
	refused := filepath.Join(dir, "refused.sock")
	l, err := net.Listen("unix", refused)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp.Close()
	for _, addr := range []string{"unix:" + filepath.Join(dir, "missing.sock"), "unix:" + refused, tcp.Addr().String()} {
		if n, err := transfersOf(addr)(t.Context()); n != 0 || err != nil {
			t.Errorf("%s: %d transfers, %v", addr, n, err)
		}
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	if _, err := transfersOf(strings.TrimPrefix(other.URL, "http://"))(t.Context()); err == nil {
		t.Error("something else that answers is no error")
	}
}

// reportOf returns the report as it is printed, and fails the test if a line is too long.
func reportOf(t *testing.T, r prune.Report) string {
	t.Helper()
	var out strings.Builder
	if err := writePruneReport(&out, r, reportTime); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	return out.String()
}

var reportTime = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func reportImage(digit string, size int64, names ...string) prune.Image {
	img := prune.Image{ID: "sha256:" + strings.Repeat(digit, 64), Size: size}
	for _, name := range names {
		if strings.Contains(name, "@") {
			img.Digests = append(img.Digests, name+strings.Repeat(digit, 64))
		} else {
			img.Tags = append(img.Tags, name)
		}
	}
	return img
}

// exampleReport has an image of each kind.
func exampleReport() prune.Report {
	ago := func(d time.Duration) time.Time { return reportTime.Add(-d) }
	const mb, day = 1_000_000, 24 * time.Hour
	return prune.Report{
		Decision: prune.Pruned, DryRun: true, Watched: true, High: 0.85, Low: 0.75,
		Before: []prune.Disk{{Path: "/var/lib/docker", Total: 10_000 * mb, Used: 8_600 * mb}},
		After:  []prune.Disk{{Path: "/var/lib/docker", Total: 10_000 * mb, Used: 8_600 * mb}},
		Images: []prune.ImageDecision{
			{Image: reportImage("a", 900*mb, "ghcr.io/org/app@sha256:"), Frees: 800 * mb, Action: prune.Delete, Rule: prune.RuleOrphan, Used: ago(20 * day), FirstSeen: ago(90 * day)},
			{Image: reportImage("b", 500*mb), Frees: 300 * mb, Action: prune.Delete, Rule: prune.RuleOrphan, FirstSeen: ago(9 * day)},
			{Image: reportImage("c", 200*mb), Frees: 100 * mb, Action: prune.Delete, Rule: prune.RuleParent, With: "sha256:" + strings.Repeat("b", 64), FirstSeen: ago(9 * day)},
			{Image: reportImage("d", 100*mb, "a-registry.with-a-long-name.example:5000/organisation/team/application:2026-11-20"), Action: prune.Keep, Rule: prune.Rule(prune.UseContainer), Why: "container a-container-with-a-long-name-1 uses it"},
			{Image: reportImage("e", 100*mb, "db:15", "db:15.2"), Action: prune.Keep, Rule: prune.Rule(prune.UseContainer), Why: "container db uses it"},
			{Image: reportImage("f", 50*mb), Action: prune.Keep, Rule: prune.RuleChildren, Why: "web:1 was built on it"},
			{Image: reportImage("1", 50*mb), Action: prune.Keep, Rule: prune.RuleChildren, Why: "web:1 was built on it"},
			{Image: reportImage("2", 50*mb, "base:1"), Action: prune.Keep, Rule: prune.RuleChildren, Why: "web:1 was built on it", Used: ago(3 * time.Hour)},
			{Image: reportImage("3", 7*mb, "tool:1"), Action: prune.Keep, Rule: prune.RuleTag, Why: "has a tag", FirstSeen: ago(30 * day)},
			{Image: reportImage("4", 7*mb, "other:1"), Frees: 7 * mb, Action: prune.Deletable, Rule: prune.RuleOld, Used: ago(time.Minute)},
		},
	}
}

// TestPruneReport: one line that says all, groups with their reason, short digests, one row for what
// builds have left, and a last use only where one was seen.
func TestPruneReport(t *testing.T) {
	want := `would free 1.2 GB of 3 images: 86 % → 74 %
This was a dry run; --apply does it.

would go: 3 images, 1.2 GB
  IMAGE                                        FREES  LAST USE
  ghcr.io/org/app@sha256:aaaaaaaaaaaa         800 MB  20 days ago
  sha256:bbbbbbbbbbbb                         400 MB  none seen in 9 days
  1 intermediate image of builds                      counted above

stays: a container uses it: 2 images
  IMAGE                                         SIZE  BY
  …rganisation/team/application:2026-11-20    100 MB  container a-container-wit…
  db:15 (+1)                                  100 MB  container db

stays: another image was built on it: 3 images
  IMAGE                                         SIZE  LAST USE
  base:1                                       50 MB  3 hours ago
  2 intermediate images of builds             100 MB

stays: it has a tag, or is a base (--tagged lets it go): 1 image
  IMAGE                                         SIZE  LAST USE
  tool:1                                      7.0 MB  none seen in 30 days

may go, and need not: 1 image, 7.0 MB
  IMAGE                                        FREES  LAST USE
  other:1                                     7.0 MB  a moment ago

/var/lib/docker: 86 % full (starts above 85 %, stops at 75 %)
`
	if got := reportOf(t, exampleReport()); got != want {
		t.Errorf("the report is\n%s\nwant\n%s", got, want)
	}
}

// TestPruneHeadline: the first line says what has happened, or would.
func TestPruneHeadline(t *testing.T) {
	dry, real, none := exampleReport(), exampleReport(), exampleReport()
	real.DryRun, real.After = false, []prune.Disk{{Path: "/var/lib/docker", Total: 10_000_000_000, Used: 7_300_000_000}}
	none.Images = none.Images[3:]
	with := func(r prune.Report, d prune.Decision, reason string) prune.Report {
		r.Decision, r.Reason = d, reason
		return r
	}
	for _, test := range []struct {
		report prune.Report
		want   string
	}{
		{dry, "would free 1.2 GB of 3 images: 86 % → 74 %"},
		{with(dry, prune.Incomplete, "the rules keep the rest"), "would free 1.2 GB of 3 images: 86 % → 74 % (75 % is wanted)"},
		{with(none, prune.Incomplete, "the rules keep the rest"), "nothing to free: 86 % full, and no image may go (75 % is wanted)"},
		{with(none, prune.NotNeeded, ""), "nothing to do: 86 % full, and prune starts above 85 %"},
		{with(none, prune.Deferred, "a hold is in force: root runs \"make test\""), "not now: a hold is in force: root runs \"make test\""},
		{real, "freed 1.3 GB of 3 images: 86 % → 73 %"},
		{with(real, prune.Deferred, "a hold is in force"), "freed 1.3 GB of 3 images: 86 % → 73 %; then stopped: a hold is in force"},
	} {
		got := reportOf(t, test.report)
		if first, _, _ := strings.Cut(got, "\n"); first != test.want {
			t.Errorf("%q\nwant %q", first, test.want)
		}
		if test.report.DryRun && (strings.Contains(got, "pruned") || strings.Contains(got, "deleted")) {
			t.Errorf("a dry run says that it deleted:\n%s", got)
		}
	}
}

// TestPruneReportSaysWhatWouldHelp where the rules keep too much.
func TestPruneReportSaysWhatWouldHelp(t *testing.T) {
	r := exampleReport()
	r.Decision, r.Reason = prune.Incomplete, "the images that may be deleted are not enough to reach the low watermark"
	r.Help = []prune.Help{{What: "--tagged: 4 more images that nothing uses may go", Bytes: 3_200_000_000}, {What: "build cache (docker builder prune)", Bytes: 800_000_000}}
	r.Warnings = []string{"keep has \"rediss:*\", which matches no image of this host"}
	r.Watched = false
	got := reportOf(t, r)
	for _, want := range []string{"Why not enough: the other 6 images stay, for the reasons below.", "What would help:\n    3.2 GB  --tagged: 4 more", "800 MB  build cache", "Warning: keep has \"rediss:*\"", "docker watch is not running"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
}

// TestTimersRunsAreShort: they mostly have nothing to do.
func TestTimersRunsAreShort(t *testing.T) {
	for _, decision := range []prune.Decision{prune.NotNeeded, prune.Deferred} {
		r := exampleReport()
		r.DryRun, r.Decision, r.Reason, r.Images = false, decision, "a hold is in force", r.Images[3:]
		if got := reportOf(t, r); strings.Count(got, "\n") > 3 {
			t.Errorf("%s:\n%s", decision, got)
		}
	}
}

func TestSizeInWords(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 9_949: "9.9 kB", 9_960: "10 kB", 999_499: "999 kB", 999_500: "1.0 MB", 1_234_000_000: "1.2 GB"} {
		if got := size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
