package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hubcache/hubcache/admin"
)

var statsNow = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

// aBusyCache has the figures of a cache in the middle of a deploy.
func aBusyCache() admin.Stats {
	return admin.Stats{
		Schema: 1, Version: "1.2.3", UptimeSeconds: 3*86400 + 7200,
		Store: admin.Store{
			Bytes: 41 << 30, ReservedBytes: 1 << 30, BudgetBytes: 50 << 30, IndexBytes: 4 << 20,
			DiskBytes: 100 << 30, DiskFreeBytes: 23 << 30, Blobs: 3120, Manifests: 812, Tags: 240, Evictions: 17, EvictedBytes: 3 << 30,
			OldestUse: ptr(statsNow.Add(-9 * 24 * time.Hour)),
		},
		Requests: admin.Requests{
			Manifest: admin.ManifestRequests{Hit: 900, Revalidated: 50, Miss: 40, Shared: 4, Stale: 5, Error: 1, Errors: admin.Errors{Upstream: 1}},
			Blob:     admin.BlobRequests{Hit: 7000, Miss: 400, Shared: 580, Bypass: 3, Error: 17, ReadAhead: 1200, Errors: admin.Errors{Client: 14, Policy: 1, Upstream: 2}},
		},
		Totals: admin.Totals{Since: statsNow.AddDate(0, -3, 0), Bytes: admin.Bytes{Served: 9 << 40, Hit: 8 << 40}},
		Bytes:  admin.Bytes{Served: 812 << 30, Hit: 768 << 30, Fetched: 43 << 30},
		Upstreams: []admin.Upstream{{
			Registry: "docker.io", URL: "https://registry-1.docker.io", State: "ok", Requests: 1532, Authenticated: true,
			RateLimit: &admin.RateLimit{Limit: 200, Remaining: 161, WindowSeconds: 21600, Source: "jane", Observed: statsNow.Add(-40 * time.Minute)},
		}},
		Inflight: []admin.Inflight{
			{Digest: "sha256:" + strings.Repeat("0a", 32), Repository: "docker.io/library/postgres", Size: 412 << 20, Received: 130 << 20, Readers: 3},
			{Digest: "sha256:" + strings.Repeat("f1", 32), Repository: "docker.io/homeassistant/home-assistant", Size: -1, Received: 12 << 20, Readers: 1},
			{Digest: "sha512:" + strings.Repeat("c2", 64), Repository: "docker.io/an-organisation-with-a-long-name/and-a-long-repository", Size: 3 << 30, Received: 3 << 30, Readers: 0},
		},
	}
}

func aCacheInTrouble() admin.Stats {
	s := aBusyCache()
	s.Inflight = nil
	for _, kind := range []string{"image", "working_set", "disk"} {
		s.Store.Shortages = append(s.Store.Shortages, admin.Shortage{Kind: kind, NeedsBytes: 61 << 30})
	}
	s.Upstreams[0].State = "denied"
	s.Upstreams[0].RateLimit.Observed = statsNow.Add(-9 * time.Hour)
	return s
}

func aNewCache() admin.Stats {
	return admin.Stats{Schema: 1, Version: "1.2.3", Store: admin.Store{BudgetBytes: 20 << 30},
		Upstreams: []admin.Upstream{{Registry: "docker.io", State: "ok"}}}
}

// TestStatsTable compares the table with testdata/stats; HUBCACHE_UPDATE=1 writes it.
func TestStatsTable(t *testing.T) {
	for name, s := range map[string]admin.Stats{"busy": aBusyCache(), "trouble": aCacheInTrouble(), "new": aNewCache()} {
		for kind, terminal := range map[string]bool{"terminal": true, "pipe": false} {
			t.Run(name+"-"+kind, func(t *testing.T) {
				var out bytes.Buffer
				if err := printStats(&out, s, statsNow, terminal); err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(out.String()) {
					if line = strings.TrimSuffix(line, "\n"); terminal && utf8.RuneCountInString(line) > 80 {
						t.Errorf("wider than a terminal of 80 columns: %s", line)
					} else if strings.TrimRight(line, " ") != line {
						t.Errorf("blanks at the end: %q", line)
					}
				}
				golden(t, filepath.Join("testdata", "stats", name+"-"+kind+".txt"), out.Bytes())
			})
		}
	}
}

// TestStatsSaysWhatIsWrongWithTheToken: a token that can't be read is not called a refused one.
func TestStatsSaysWhatIsWrongWithTheToken(t *testing.T) {
	for _, state := range []string{"missing", "unreadable", "empty", "malformed", "refused", "expired"} {
		u := admin.Upstream{State: "denied", Credential: admin.Credential{State: state}}
		if got, want := upstreamState(u, time.Now()), "ACCESS TOKEN "+strings.ToUpper(state); got != want {
			t.Errorf("%s: %q", state, got)
		}
	}
}

// TestStatsSaysWhenTheUpstreamIsAskedAgain after a 429, if the server says it.
func TestStatsSaysWhenTheUpstreamIsAskedAgain(t *testing.T) {
	at := statsNow.Add(3 * time.Hour)
	for want, u := range map[string]admin.Upstream{
		"COOLING DOWN after a 429, anonymous, asked again in 3 hours": {State: "cooling", NextAttempt: &at},
		"COOLING DOWN after a 429, with access token":                 {State: "cooling", Authenticated: true},
	} {
		if got := upstreamState(u, statsNow); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if os.Getenv("HUBCACHE_UPDATE") != "" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs:\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

// TestStatsPrintsAnyDocument: a document with missing or impossible parts is printed too,
// because an older or newer server may answer.
func TestStatsPrintsAnyDocument(t *testing.T) {
	for _, doc := range []string{`{}`, `{"upstreams":[{}],"inflight":[{}]}`, `{"inflight":[{"digest":"x","size":0}]}`,
		`{"store":{"bytes":5,"budget_bytes":0}}`, `{"store":{"bytes":9,"budget_bytes":3}}`, `{"store":{"bytes":-1,"budget_bytes":3}}`,
		`{"inflight":[{"size":10,"received":-3}]}`} {
		var s admin.Stats
		if err := json.Unmarshal([]byte(doc), &s); err != nil {
			t.Fatal(err)
		}
		if err := printStats(&bytes.Buffer{}, s, statsNow, true); err != nil {
			t.Errorf("%s: %v", doc, err)
		}
	}
}

// TestStatsOnATerminal: on a terminal the table has a bar, and --watch has a screen of its own, with
// colours unless NO_COLOR is set. q, Ctrl-C and SIGTERM end it, and the terminal is as before.
func TestStatsOnATerminal(t *testing.T) {
	p := startServer(t, "")
	for _, c := range []struct {
		env     []string
		end     string
		colours bool
	}{
		{[]string{"TERM=xterm"}, "q", true},
		{[]string{"TERM=xterm", "NO_COLOR=1"}, "\x03", false},
		{[]string{"TERM=xterm", "NO_COLOR="}, "", true},
	} {
		sh := newShell(t, c.env...)
		sh.send("hubcache stats --admin " + p.admin + "\n")
		sh.expect("[░░░░░░░░░░░░░░░░░░░░] 0B of 20GiB")
		sh.send("stty -g; hubcache stats --watch=50ms --admin " + p.admin + "; echo ended with $?; stty -g\n")
		sh.expect("\x1b[?1049h")
		for range 3 {
			sh.expect("\x1b[H")
			sh.expect("0B of 20GiB")
		}
		if c.end == "" {
			endWatch(t, p.admin)
		} else {
			sh.send(c.end)
		}
		sh.expect("\x1b[?1049l")
		sh.expect("ended with 0")
		sh.expect(ttyModes.FindString(sh.text())) // as they were before
		if sh.shown("\x1b[1m") != c.colours {
			t.Errorf("%v: colours %v", c.env, !c.colours)
		}
	}
	sh := newShell(t, "TERM=dumb")
	sh.send("hubcache stats --watch=50ms --admin " + p.admin + "; echo ended with $?\n")
	sh.expect("hit ratio")
	sh.expect("hit ratio")
	sh.send("\x03")
	sh.expect("ended with 0")
	if sh.shown("\x1b[H") || sh.shown("█") || sh.shown("░") {
		t.Error("a terminal without a cursor is drawn on")
	}
}

// ttyModes is what stty -g prints.
var ttyModes = regexp.MustCompile(`[0-9a-f]+(:[0-9a-f]+){20,}`)

// endWatch sends SIGTERM to the "hubcache stats" that watches the server at that address.
func endWatch(t *testing.T, addr string) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(line, []byte("hubcache\x00stats\x00")) || !bytes.Contains(line, []byte(addr)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWatchWaitsForTheServer: a screen that is open goes on when the server is started again.
func TestWatchWaitsForTheServer(t *testing.T) {
	p := startServer(t, "")
	sh := newShell(t, "TERM=xterm", "NO_COLOR=1")
	sh.send("hubcache stats --watch=50ms --admin " + p.admin + "; echo ended with $?\n")
	sh.expect("0B of 20GiB")
	p.signal(syscall.SIGTERM)
	p.ends(0)
	sh.expect("waiting for the server…")
	startServer(t, "admin: {listen: '"+strings.TrimPrefix(p.admin, "http://")+"'}\n")
	sh.expect("waiting for the server…")
	for began := time.Now(); ; { // the screen after the last wait has none
		screens := strings.Split(sh.text(), "\x1b[H")
		if last := screens[len(screens)-1]; !strings.Contains(last, "waiting") && strings.Contains(last, "20GiB") {
			break
		}
		if time.Since(began) > patience {
			t.Fatal("the screen still waits")
		}
		time.Sleep(10 * time.Millisecond)
	}
	sh.send("q")
	sh.expect("ended with 0")
}

// TestStatsJSONIsTheServersDocument: stats --json prints the server's answer, byte for
// byte.
func TestStatsJSONIsTheServersDocument(t *testing.T) {
	p := startServer(t, "")
	now := func(text string) string { // without the only number that changes with time
		before, rest, _ := strings.Cut(text, `"uptime_seconds": `)
		_, after, _ := strings.Cut(rest, ",")
		return before + after
	}
	var want string
	for began := time.Now(); !strings.Contains(want, `"kind": "refused"`); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("the upstream hasn't been asked how it wants to be authenticated to: %s", want)
		}
		_, want = p.get(p.admin + "/api/v1/stats")
	}
	for _, addr := range []string{p.admin, strings.TrimPrefix(p.admin, "http://")} {
		got, err := exec.Command("hubcache", "stats", "--json", "--admin", addr).Output()
		if err != nil || now(string(got)) != now(want) {
			t.Errorf("--admin %s: %v\n%s\nwant\n%s", addr, err, got, want)
		}
	}
	out, err := exec.Command("hubcache", "stats", "--admin", p.pull).CombinedOutput()
	if exitCodeOf(t, err) != 1 || !strings.Contains(string(out), "is it the admin address?") {
		t.Errorf("asked at the pull port: %v %s", err, out)
	}
}

// TestWatchEndsWithCtrlC: the table is printed again and again until Ctrl-C, which is not
// a failure.
func TestWatchEndsWithCtrlC(t *testing.T) {
	p := startServer(t, "")
	cmd := exec.Command("hubcache", "stats", "--watch=50ms", "--admin", p.admin)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	out, tables := bufio.NewReader(stdout), 0
	for tables < 3 {
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatalf("it ended after %d tables: %v", tables, err)
		}
		if strings.HasPrefix(line, "hit ratio") {
			tables++
		}
		if strings.Contains(line, "\x1b") {
			t.Errorf("a pipe gets what is for terminals: %q", line)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Fatal(err)
	}
	if code := exitCodeOf(t, cmd.Wait()); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestStatsSayWhatIsKeptWarm: what the last run did and when the next is, with the first failure.
func TestStatsSayWhatIsKeptWarm(t *testing.T) {
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	next := now.Add(3 * time.Hour)
	last := &admin.WarmRun{Began: now.Add(-2 * time.Hour), Images: 12, Fetched: 3 << 20}
	failed := *last
	failed.Failed, failed.Failures = 2, []admin.WarmFailure{{What: "docker.io/library/redis:7", Error: "no such thing"}, {}}
	for want, w := range map[string]admin.WarmStats{
		"next in 3 hours": {Next: &next},
		"running now":     {Running: true, Next: &next},
		"12 images 2 hours ago, 3MiB fetched; next in 3 hours":                                    {Last: last, Next: &next},
		"12 images 2 hours ago, 3MiB fetched; 2 FAILED (redis:7: no such thing); next in 3 hours": {Last: &failed, Next: &next},
		"never: warm.references and warm.files name no image":                                     {},
	} {
		if got := keptWarm(w, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
