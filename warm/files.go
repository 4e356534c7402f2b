// Package warm keeps images in the cache on a schedule, and reads which images compose files name.
package warm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hubcache/hubcache/compose"
	"github.com/hubcache/hubcache/name"
)

// Images returns the images that compose files name, as docker compose config does, each once and
// in the order of the files' keys. A variable that is set nowhere is empty. Services of every profile
// count; one that is built and has no image doesn't. notes are for people: what was left empty.
//
// Errors: those of [compose.Project.Images]; an image's name isn't whole without a variable that is
// set nowhere.
func Images(ctx context.Context, p compose.Project) (refs []name.Reference, notes []string, err error) {
	images, err := p.Images(ctx)
	if err != nil {
		return nil, nil, err
	}
	var faults []error
	for _, i := range images {
		if strings.HasSuffix(i.Where, ".build") { // its name is the project's
			continue
		}
		text := strings.ReplaceAll(i.Name, compose.Any, "")
		ref, err := name.ParseReference(text)
		switch {
		case err != nil && text != i.Name:
			faults = append(faults, fmt.Errorf("%s: %s needs a variable that is set nowhere", strings.Join(p.Files, ", "), i.Where))
			continue
		case err != nil:
			faults = append(faults, fmt.Errorf("%s: %s: %w", strings.Join(p.Files, ", "), i.Where, err))
			continue
		case text != i.Name:
			notes = append(notes, fmt.Sprintf("%s: a variable that is set nowhere is empty: %s", i.Where, name.Familiar(ref.String())))
		}
		if !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	return refs, notes, errors.Join(faults...)
}
