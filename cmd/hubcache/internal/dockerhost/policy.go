package dockerhost

import (
	"fmt"
	"time"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/prune"
)

// Check finds what is wrong with the settings in docker.
func Check(s *settings.Settings) error {
	if err := PrunePolicy(s).Validate(); err != nil {
		return fmt.Errorf("docker.prune: %w", err)
	}
	return nil
}

// PrunePolicy is docker.prune as prune takes it.
func PrunePolicy(s *settings.Settings) prune.Policy {
	p := s.Docker.Prune
	return prune.Policy{
		High: float64(p.High), Low: float64(p.Low), Critical: float64(p.Critical), MinAge: time.Duration(p.MinAge),
		Quiet: time.Duration(p.Quiet), MaxWait: time.Duration(p.MaxWait), Tagged: bool(p.Tagged), Keep: p.Keep, KeepFiles: p.KeepFiles,
	}
}
