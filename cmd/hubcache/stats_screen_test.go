package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hubcache/hubcache/admin"
)

// screenOf is a screen that has seen two answers, two seconds apart.
func screenOf(before, now admin.Stats) *screen {
	s := &screen{addr: "127.0.0.1:5001", every: 2 * time.Second}
	s.add(before, statsNow.Add(-2*time.Second))
	s.add(now, statsNow)
	return s
}

// aMomentBefore is what the busy cache had two seconds ago.
func aMomentBefore() admin.Stats {
	s := aBusyCache()
	s.UptimeSeconds -= 2
	s.Bytes.Served -= 50 << 20
	s.Bytes.Fetched -= 3 << 20
	s.Requests.Blob.Hit -= 31
	s.Inflight = append([]admin.Inflight{}, s.Inflight...)
	s.Inflight[0].Received -= 9 << 20
	return s
}

// TestStatsScreen compares the screen with testdata/stats, in terminals of several sizes.
func TestStatsScreen(t *testing.T) {
	trouble := aCacheInTrouble()
	trouble.Upstreams[0].Failure = &admin.Failure{Kind: "broken", Host: "auth.docker.io", Status: 503, At: statsNow.Add(-5 * time.Minute)}
	trouble.Store.WriteErrors, trouble.Store.Corrupt, trouble.Store.PinnedBytes = 3, 1, 2<<30
	for i, cause := range []string{"upstream", "client"} {
		trouble.Failures = append(trouble.Failures, admin.Failed{Cause: cause, Reference: "docker.io/library/redis:7", Detail: "Docker Hub limits requests", Count: int64(i + 1), Last: statsNow.Add(-time.Minute)})
	}
	away := screenOf(aMomentBefore(), aBusyCache())
	away.waits = "nothing answers at 127.0.0.1:5001"
	for name, s := range map[string]*screen{
		"busy": screenOf(aMomentBefore(), aBusyCache()), "trouble": screenOf(trouble, trouble), "new": screenOf(aNewCache(), aNewCache()), "away": away,
	} {
		for _, size := range [][2]int{{80, 24}, {200, 50}, {40, 24}} {
			t.Run(fmt.Sprintf("%s-%dx%d", name, size[0], size[1]), func(t *testing.T) {
				lines := s.lines(size[0], size[1], statsNow)
				if len(lines) != size[1] {
					t.Errorf("%d lines on a terminal of %d", len(lines), size[1])
				}
				var out bytes.Buffer
				for _, l := range lines {
					out.WriteString(strings.TrimRight(l.text, " ") + "\n")
				}
				golden(t, filepath.Join("testdata", "stats", fmt.Sprintf("screen-%s-%dx%d.txt", name, size[0], size[1])), out.Bytes())
			})
		}
	}
}

// TestStatsScreenFitsEveryTerminal: no line is wider or below the end, whatever the size, the
// document and the names in it. Nothing in it controls the terminal.
func TestStatsScreenFitsEveryTerminal(t *testing.T) {
	var odd admin.Stats
	if err := json.Unmarshal([]byte(`{"store":{"bytes":-1,"budget_bytes":3},"upstreams":[{"registry":"a\u001b[31mb"},{"rate_limit":{}}],
		"failures":[{"reference":"\u001b[2J","detail":"a\nb"},{},{},{},{},{}],"inflight":[{"digest":"x","repository":"\u001b]0;x\u0007\nevil","size":10,"received":-3},{},{"size":1,"received":1000}]}`), &odd); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*screen{screenOf(admin.Stats{}, odd), screenOf(aBusyCache(), aCacheInTrouble()), screenOf(aBusyCache(), admin.Stats{}), {}} {
		for _, width := range []int{1, 2, 9, 20, 40, 79, 500} {
			for _, height := range []int{1, 2, 5, 12, 24, 100} {
				lines := s.lines(width, height, statsNow)
				if len(lines) != height {
					t.Errorf("%dx%d: %d lines", width, height, len(lines))
				}
				for _, l := range lines {
					if utf8.RuneCountInString(l.text) > width || strings.ContainsAny(l.text, "\x1b\x07\n\r") {
						t.Errorf("%dx%d: %q", width, height, l.text)
					}
				}
			}
		}
	}
}

// TestStatsScreenAfterARestart: the counters of another run give no rates.
func TestStatsScreenAfterARestart(t *testing.T) {
	restarted := aNewCache()
	restarted.Bytes.Served = 1 << 50
	for _, l := range screenOf(aBusyCache(), restarted).lines(80, 24, statsNow) {
		if strings.Contains(l.text, "/s") {
			t.Errorf("a rate: %s", l.text)
		}
	}
}
