package dashboard

import (
	"math"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/inventory"
)

// TestTilesFillTheMap: they lie side by side, each as large as its share, and none is outside.
func TestTilesFillTheMap(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 10, 32, 500} {
		var all []inventory.Image
		var stored int64
		for i := range n {
			size := int64(1000000 / (i + 1))
			stored += size
			all = append(all, inventory.Image{Repository: string(rune('A' + i)), Digest: digest.FromString(string(rune(i))), Size: size})
		}
		tiles := tilesOf(inventory.NewList(all, 0), stored)
		if len(tiles) != min(n, tilesMost) {
			t.Errorf("%d images: %d tiles", n, len(tiles))
		}
		var sum int64
		for i, a := range tiles {
			sum += a.Bytes
			if share := a.W * a.H / 10000; math.Abs(share-float64(a.Bytes)/float64(stored)) > 1e-6 {
				t.Errorf("%d images: tile %d has %v of the map", n, i, share)
			}
			if a.X < -1e-6 || a.Y < -1e-6 || a.X+a.W > 100+1e-6 || a.Y+a.H > 100+1e-6 {
				t.Errorf("%d images: tile %d is outside: %+v", n, i, a)
			}
			for _, b := range tiles[:i] {
				if min(a.X+a.W, b.X+b.W)-max(a.X, b.X) > 1e-6 && min(a.Y+a.H, b.Y+b.H)-max(a.Y, b.Y) > 1e-6 {
					t.Errorf("%d images: %+v and %+v overlap", n, a, b)
				}
			}
		}
		if sum != stored {
			t.Errorf("%d images: the tiles have %d bytes, and the disk %d", n, sum, stored)
		}
	}
}

// TestSharedBytesAreSplit: tags of one digest count once, and what two images share counts half for
// each, so that the sum is what is on the disk.
func TestSharedBytesAreSplit(t *testing.T) {
	d, e := digest.FromString("d"), digest.FromString("e")
	tiles := tilesOf(inventory.NewList([]inventory.Image{
		{Repository: "a", Tag: "1", Digest: d, Size: 100, Shared: 100}, {Repository: "a", Tag: "latest", Digest: d, Size: 100, Shared: 100},
		{Repository: "b", Tag: "1", Digest: e, Size: 160, Shared: 100},
	}, 7), 167)
	if len(tiles) != 2 || tiles[0].Repository != "b" || tiles[0].Bytes != 110 || tiles[1].Bytes != 50 || tiles[1].Images != 2 {
		t.Errorf("%+v", tiles)
	}
}

// TestPeriodsAddUp: the figures, the bars and the rows of the table are of the same points.
func TestPeriodsAddUp(t *testing.T) {
	s := admin.Series{Name: "hour", StepSeconds: 60}
	at := time.Date(2026, 1, 2, 3, 2, 0, 0, time.UTC)
	for n := range 60 {
		p := admin.Point{At: at.Add(time.Duration(n) * time.Minute).Format(time.RFC3339)}
		if n >= 50 {
			p.Requests, p.Hits, p.Served, p.Hit, p.Fetched = 2, 1, 1000, 250, 500
		}
		if n == 59 {
			p.Fetched, p.Errors = 4000, 3
		}
		s.Points = append(s.Points, p)
	}
	p := periodOf(s)
	if p.Served != 10_000 || p.Fetched != 8500 || p.Bytes != "25 %" || p.Requests != "50 %" || p.Errors != 3 || p.Peak != 4000 {
		t.Errorf("%+v", p)
	}
	if len(p.Bars) != 10 || p.Bars[0].X != 50 || p.Bars[0].Served != 25 || p.Bars[0].ServedY != 75 || !p.Bars[9].FetchedBehind || p.Bars[9].FetchedY != 0 {
		t.Errorf("%+v", p.Bars)
	}
	if len(p.Rows) != 3 || p.Time(p.Rows[0].At) != "04:00" || p.Rows[0].Served != 2000 || p.Rows[1].Served != 5000 || p.Rows[2].Served != 3000 {
		t.Errorf("%+v", p.Rows)
	}
	if empty := periodOf(admin.Series{Name: "day", StepSeconds: 900, Points: make([]admin.Point, 96)}); len(empty.Bars)+len(empty.Rows) > 0 || empty.Bytes != "–" {
		t.Errorf("%+v", empty)
	}
}

func TestWords(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "0.98 KiB", 1023: "1.00 KiB", 5 << 20: "5.00 MiB", 15 << 20: "15.0 MiB", 150 << 20: "150 MiB", 1023 << 20: "1.00 GiB", 1 << 62: "4096 PiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for _, c := range []struct {
		n, of int64
		want  string
	}{{0, 0, "–"}, {0, 5, "0 %"}, {1, 1000, "under 1 %"}, {999, 1000, "over 99 %"}, {5, 5, "100 %"}, {1, 3, "33 %"}} {
		if got := percent(c.n, c.of); got != c.want {
			t.Errorf("%d of %d: %s, want %s", c.n, c.of, got, c.want)
		}
	}
	for d, want := range map[time.Duration]string{time.Second: "1 minute", 59*time.Minute + time.Second: "1 hour", 61 * time.Minute: "1 hour and 1 minute", 6 * time.Hour: "6 hours"} {
		if got := upTo(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	ref := "docker.io/library/redis@" + digest.FromString("").String()
	if got := familiar(ref); got != "redis@sha256:e3b0c44298fc" {
		t.Error(got)
	}
}
