package dockerhost

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/name"
)

// fileRecipe is what to do about a file that the service can't read.
const fileRecipe = "put it into /srv or /etc/hubcache, readable for everybody"

// CheckWarmFiles finds the files of warm.files that the service can't read. A file that isn't on this
// machine is no fault, unless the service could not see it anyway. Each error names its file and says
// what to do.
func (s *Service) CheckWarmFiles(files []string) (faults []error) {
	for _, path := range files {
		if why := s.unreadable(path); why != "" {
			faults = append(faults, fmt.Errorf("warm.files: %s can't read %s: %s. Instead: %s", serviceUnit, path, why, fileRecipe))
		}
	}
	return faults
}

// shownFailures is how many failures of the last run are findings of their own.
const shownFailures = 5

// checkWarm looks at what is kept warm: whether the server can read the compose files, and what its
// last run met.
func (d *Doctor) checkWarm(w admin.WarmStats) {
	if w.Schedule == "" {
		return
	}
	bad := false
	fault := func(detail, advice string) {
		d.broken("warm", detail, advice)
		bad = true
	}
	files := []string(d.running.Warm.Files)
	if service, err := InstalledService(d.Root); err == nil && d.told != nil && service.Uses(d.told.File) {
		for _, err := range service.CheckWarmFiles(files) {
			detail, advice, _ := strings.Cut(err.Error(), ". Instead: ")
			fault(detail, advice)
		}
	}
	if w.Last != nil && !bad {
		for _, f := range w.Last.Failures[:min(len(w.Last.Failures), shownFailures)] {
			if slices.Contains(files, f.What) {
				fault(f.Error, "the server has to be able to read the file: "+fileRecipe)
			} else {
				d.note("warm", fmt.Sprintf("%s is not kept: %s", name.Familiar(f.What), f.Error), "")
				bad = true
			}
		}
	}
	switch {
	case bad:
	case w.Next == nil && !w.Running:
		d.note("warm", "warm.schedule is set, and warm.references and warm.files name no image", "name some, or leave the schedule out")
	case w.Last == nil:
		d.ok("warm", "the first run is still to come (%s)", w.Schedule)
	default:
		d.ok("warm", "the last run left %d images whole (%s)", w.Last.Images, w.Schedule)
	}
}
