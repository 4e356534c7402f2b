//go:build integration

package integration

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/integration/tiertest"
)

// tierStrike is what happens to the shared tier while clients pull.
type tierStrike struct {
	name       string
	does, undo func(*tierLab, []*server)
	rare       bool // only with HUBCACHE_SOAK
}

var tierStrikes = []tierStrike{
	{name: "Redis is killed",
		does: func(l *tierLab, _ []*server) { l.redis.Kill() },
		undo: func(l *tierLab, _ []*server) { l.redis.Start() }},
	{name: "the bucket is killed",
		does: func(l *tierLab, _ []*server) { l.bucket.Kill() },
		undo: func(l *tierLab, _ []*server) { l.bucket.Start() }},
	{name: "a node is killed",
		does: func(_ *tierLab, nodes []*server) { nodes[0].Kill() },
		undo: func(_ *tierLab, nodes []*server) { nodes[0].Start() }},
	{name: "Redis is stopped", rare: true,
		does: func(l *tierLab, _ []*server) { l.redis.Stop() },
		undo: func(l *tierLab, _ []*server) { l.redis.Continue() }},
	{name: "the bucket is stopped",
		does: func(l *tierLab, _ []*server) { l.bucket.Stop() },
		undo: func(l *tierLab, _ []*server) { l.bucket.Continue() }},
	{name: "Redis can't be reached", rare: true,
		does: func(l *tierLab, _ []*server) { l.toRedis.Partition() },
		undo: func(l *tierLab, _ []*server) { l.toRedis.Heal() }},
	{name: "the bucket can't be reached", rare: true,
		does: func(l *tierLab, _ []*server) { l.toBucket.Partition() },
		undo: func(l *tierLab, _ []*server) { l.toBucket.Heal() }},
	{name: "the nodes can't reach each other", rare: true,
		does: func(l *tierLab, _ []*server) {
			for _, way := range l.toNodes {
				way.Partition()
			}
		},
		undo: func(l *tierLab, _ []*server) {
			for _, way := range l.toNodes {
				way.Heal()
			}
		}},
	{name: "Redis is slow",
		does: func(l *tierLab, _ []*server) { l.toRedis.Delay(300 * time.Millisecond) },
		undo: func(l *tierLab, _ []*server) { l.toRedis.Heal() }},
	{name: "Redis is too slow", rare: true,
		does: func(l *tierLab, _ []*server) { l.toRedis.Delay(2 * time.Second) },
		undo: func(l *tierLab, _ []*server) { l.toRedis.Heal() }},
	{name: "the bucket is slow", rare: true,
		does: func(l *tierLab, _ []*server) { l.toBucket.Delay(2 * time.Second) },
		undo: func(l *tierLab, _ []*server) { l.toBucket.Heal() }},
	{name: "Redis is full", rare: true,
		does: func(l *tierLab, _ []*server) { l.redisMemory("1") },
		undo: func(l *tierLab, _ []*server) { l.redisMemory("0") }},
	{name: "the bucket is full",
		does: func(l *tierLab, _ []*server) { l.fillDisk() },
		undo: func(l *tierLab, _ []*server) { os.Remove(filepath.Join(l.disk, "rubbish")) }},
}

// redisMemory sets how much Redis may hold; with "1" it refuses to keep anything more.
func (l *tierLab) redisMemory(bytes string) {
	c := redis.NewClient(&redis.Options{Addr: l.redis.Addr})
	defer c.Close()
	if err := c.ConfigSet(l.t.Context(), "maxmemory", bytes).Err(); err != nil {
		l.t.Error(err)
	}
}

// fillDisk leaves no byte on the disk of the bucket.
func (l *tierLab) fillDisk() {
	f, err := os.Create(filepath.Join(l.disk, "rubbish"))
	if err != nil {
		l.t.Error(err)
		return
	}
	defer f.Close()
	if _, err := io.Copy(f, zeros{}); !errors.Is(err, unix.ENOSPC) {
		l.t.Errorf("the disk of the bucket isn't full: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// unwell returns why nodes go on alone, or "".
func unwell(nodes []*server) string {
	for _, n := range nodes {
		if s := n.Stats().Shared; s.State != "well" {
			return "bucket: " + s.Bucket + ", lease: " + s.Lease
		}
	}
	return ""
}

// TestNodesWhoseTierIsSick: while clients pull, at a random instant, bucket, Redis, a node or a way between
// them is struck. Each client ends with the right bytes, by a Range to another node where its own has
// died. The upstream sends more then, and the stats say why. After that all is taken up again.
// TestSoakOfNodesWhoseTierIsSick has 50 rounds, with further strikes.
func TestNodesWhoseTierIsSick(t *testing.T) {
	t.Parallel()
	strikeTier(t, 0, func(s tierStrike) bool { return !s.rare })
}

func TestSoakOfNodesWhoseTierIsSick(t *testing.T) {
	if os.Getenv("HUBCACHE_SOAK") == "" {
		t.Skip("it runs in make soak; TestNodesWhoseTierIsSick has some of its rounds")
	}
	strikeTier(t, 50, func(tierStrike) bool { return true })
}

// strikeTier has that many rounds, or one for each of the strikes.
func strikeTier(t *testing.T, rounds int, with func(tierStrike) bool) {
	l := newTierLabOn(t, mountTmpfs(t, "96m", unix.MNT_DETACH), hubtest.Options{TotalBandwidth: 8 << 20, AnonymousLimit: 1_000_000})
	nodes := []*server{l.node(""), l.node(""), l.node("")}
	var strikes []tierStrike
	for _, s := range tierStrikes {
		if with(s) {
			strikes = append(strikes, s)
		}
	}
	more := 0
	for round := range max(rounds, len(strikes)) {
		if l.round(round, strikes[round%len(strikes)], nodes) {
			more++
		}
		if t.Failed() {
			return
		}
	}
	l.uploaded(nodes)
	t.Logf("in %d of the rounds the upstream has sent more than the image", more)
}

// round reports whether the upstream has sent more than the image.
func (l *tierLab) round(round int, s tierStrike, nodes []*server) (more bool) {
	img := l.hub.AddImage("library/app", fmt.Sprint(round), hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 200 << 10, Seed: uint64(3 * round)}, {Size: 1 << 20, Seed: uint64(3*round + 1)}, {Size: 5 << 20, Seed: uint64(3*round + 2)}}})
	before, begin := l.blobBytes(), time.Now()
	done := make(chan struct{})
	go func() { defer close(done); l.stampede(img, 12, nodes) }()
	after := rand.N(700 * time.Millisecond)
	time.Sleep(after)
	s.does(l, nodes)
	<-done
	got, want, alive := l.blobBytes()-before, sizeOf(img), nodes
	if strings.Contains(s.name, "node is") {
		alive = nodes[1:]
	}
	why := unwell(alive)
	l.t.Logf("round %d: %s after %s: the upstream has sent %d bytes of %d in %s; %s", round, s.name, after.Round(time.Millisecond), got, want, time.Since(begin).Round(time.Millisecond), why)
	if got > want && why == "" && strings.Contains(s.name, "Redis") {
		l.t.Error("nobody is told why")
	}
	if limit := int64(len(nodes)) * want; got > limit+want {
		l.t.Errorf("the upstream has sent %d bytes to %d nodes", got, len(nodes))
	}
	s.undo(l, nodes)
	begin = time.Now()
	l.settle(round, nodes)
	l.t.Logf("round %d: taken up again after %s", round, time.Since(begin).Round(time.Millisecond))
	// Room for the next round. What the bucket is just writing stays.
	_ = os.RemoveAll(filepath.Join(l.disk, "data", tiertest.BucketName, "cache"))
	return got > want
}

// settle waits until all nodes share again, which they find out when there is something to share.
func (l *tierLab) settle(round int, nodes []*server) {
	n := 0
	eventually(l.t, "the tier is taken up again", func() error {
		n++
		small := l.hub.AddImage("library/small", fmt.Sprint(round, "-", n), hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 100, Seed: uint64(1000*round + n)}}})
		for _, node := range nodes {
			if err := l.pull(small, node); err != nil {
				return err
			}
		}
		why := unwell(nodes)
		if why == "" {
			return nil
		}
		time.Sleep(300 * time.Millisecond)
		return errors.New(why)
	})
}

// uploaded waits until the nodes have uploaded what they had.
func (l *tierLab) uploaded(nodes []*server) {
	eventually(l.t, "the uploads", func() error {
		for _, node := range nodes {
			if s := node.Stats().Shared; s.Uploads > 0 {
				return fmt.Errorf("%d uploads: %+v", s.Uploads, s)
			}
		}
		return nil
	})
}
