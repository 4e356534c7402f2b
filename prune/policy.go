package prune

import (
	"fmt"
	"path"
	"time"
)

// Policy says when images are deleted, and which ones never are. The zero value is not
// valid: start from [DefaultPolicy].
type Policy struct {
	// High, Low and Critical are shares of a file system's space and of its inodes, 0 < x ≤ 1.
	// Above High, images are deleted until both are at or below Low. Above Critical, new
	// holds have to wait, and Quiet no longer defers a run.
	High, Low, Critical float64
	// MinAge keeps images that were used, first seen or tagged less than this time ago.
	// 0 keeps no image because of its age.
	MinAge time.Duration
	// Quiet defers a run while the last pull, load, import, tag, container create or
	// container start is less than this time ago. 0 doesn't ask for it.
	Quiet time.Duration
	// MaxWait is how long a run waits, above Critical, for the holds in force to end.
	MaxWait time.Duration
	// Tagged allows images with a tag to be deleted. Without it, only images that nothing
	// names or uses are.
	Tagged bool
	// Keep has patterns of images that are kept: "redis", "library/*:*-alpine",
	// "ghcr.io/*/*", an image ID. Each spelling of a name that Docker knows matches
	// ("docker.io/redis", "index.docker.io/library/redis"). A * doesn't match a slash. A pattern
	// without a tag means every tag. An image that has only a digest is kept if the rest of the
	// pattern matches, because its tag isn't known.
	Keep []string
	// KeepFiles are compose files whose images are kept. They are only read. If one can't be
	// read or understood, or names no image, the run fails.
	KeepFiles []string

	fromFiles []pattern // what KeepFiles name, once they were read
}

// DefaultPolicy returns the policy of a host without any settings.
func DefaultPolicy() Policy {
	return Policy{
		High: 0.85, Low: 0.75, Critical: 0.95,
		MinAge:  72 * time.Hour,
		Quiet:   10 * time.Minute,
		MaxWait: 30 * time.Minute,
	}
}

// Validate returns an error that names the first invalid setting, or nil.
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
