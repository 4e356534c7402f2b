package prune

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/moby/client"
)

// Help is something that would free space, and that a run doesn't do by itself.
type Help struct {
	What  string `json:"what"` // for people, with the command or the flag
	Bytes int64  `json:"bytes"`
}

// help says what would help where a run isn't enough. It is only advice: if the Engine doesn't
// answer, it is left out.
func (p *Pruner) help(ctx context.Context, s Snapshot, policy Policy, uses map[string]Record, now time.Time) []Help {
	var all []Help
	add := func(bytes int64, format string, args ...any) {
		if bytes > 0 {
			all = append(all, Help{fmt.Sprintf(format, args...), bytes})
		}
	}
	if !policy.Tagged {
		images, bytes := mayGo(Decide(s, policy, uses, now))
		policy.Tagged = true
		withTags, more := mayGo(Decide(s, policy, uses, now))
		add(more-bytes, "--tagged: %d more images that nothing uses may go", withTags-images)
	}
	usage, err := p.Engine.DiskUsage(ctx, client.DiskUsageOptions{Volumes: true, BuildCache: true})
	if err != nil {
		p.log().Warn("what would help can't be computed", "error", err)
		return all
	}
	add(usage.Volumes.Reclaimable, "volumes that no container uses (docker volume ls -f dangling=true)")
	add(usage.BuildCache.Reclaimable, "build cache (docker builder prune)")
	return all
}

// mayGo counts the images that may be deleted, and what they free.
func mayGo(images []ImageDecision) (n int, bytes int64) {
	for _, d := range images {
		if d.Action == Delete || d.Action == Deletable {
			n++
			bytes += d.Frees
		}
	}
	return n, bytes
}
