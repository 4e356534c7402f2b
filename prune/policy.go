package prune

import (
	"fmt"
	"path"
	"time"
)

// Policy says when images may go and which never do. The zero value is not valid; start
// from [DefaultPolicy].
type Policy struct {
	// High, Low and Critical are shares of a file system's space and of its inodes, 0 < x ≤ 1.
	// Above High images go until both are at or below Low; above Critical new holds are
	// made to wait, and Quiet no longer defers.
	High, Low, Critical float64
	// MinAge keeps what was used, first seen or tagged less than this ago. 0 keeps nothing
	// on account of its age.
	MinAge time.Duration
	// Quiet defers while the last pull, load, import, tag, container create or container
	// start is younger than this. 0 doesn't ask.
	Quiet time.Duration
	// MaxWait is how long, above Critical, a run waits for the holds in force.
	MaxWait time.Duration
	// Tagged lets images go that have a tag; without it only orphans do.
	Tagged bool
	// Keep are globs of images that stay: "redis", "library/*:*-alpine", "ghcr.io/*/*".
	// A * crosses no slash; a pattern without a tag means every tag. An image known by its
	// digest alone has no tag to compare and stays if the rest of the pattern fits.
	Keep []string
	// KeepFiles are compose files whose images stay. A file that can't be read fails the run.
	KeepFiles []string
}

// DefaultPolicy is the policy without any setting.
func DefaultPolicy() Policy {
	return Policy{
		High: 0.85, Low: 0.75, Critical: 0.95,
		MinAge:  72 * time.Hour,
		Quiet:   10 * time.Minute,
		MaxWait: 30 * time.Minute,
	}
}

// Validate returns an error that names the first setting that makes no sense.
func (p Policy) Validate() error {
	switch {
	case !(0 < p.Low && p.Low <= p.High && p.High <= p.Critical && p.Critical <= 1):
		return fmt.Errorf("prune: the watermarks must be 0 < low ≤ high ≤ critical ≤ 100 %%, not low %s, high %s, critical %s",
			percent(p.Low), percent(p.High), percent(p.Critical))
	case p.MinAge < 0:
		return fmt.Errorf("prune: min_age is negative: %v", p.MinAge)
	case p.Quiet < 0:
		return fmt.Errorf("prune: quiet is negative: %v", p.Quiet)
	case p.MaxWait < 0:
		return fmt.Errorf("prune: max_wait is negative: %v", p.MaxWait)
	}
	for _, glob := range p.Keep {
		if _, err := path.Match(glob, ""); err != nil || glob == "" {
			return fmt.Errorf("prune: keep: %q is not a pattern", glob)
		}
	}
	return nil
}

func percent(share float64) string { return fmt.Sprintf("%.4g%%", share*100) }
