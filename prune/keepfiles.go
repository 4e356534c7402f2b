package prune

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/template"
	"go.yaml.in/yaml/v3"
)

// withKeepFiles returns the policy with the images of its compose files added to its keep
// list. Errors: a file can't be read, or names an image that is no pattern.
func (p Policy) withKeepFiles() (Policy, error) {
	p.Keep = slices.Clone(p.Keep)
	for _, file := range p.KeepFiles {
		images, err := composeImages(file)
		if err != nil {
			return Policy{}, fmt.Errorf("prune: keep file: %w", err)
		}
		p.Keep = append(p.Keep, images...)
	}
	return p, p.Validate()
}

// composeImages returns the images that a compose file names. Variables come from the
// environment, then from a .env file in the same folder, then from the defaults in the
// compose file. A variable that is set nowhere becomes a *, which matches anything.
//
// Each file is read on its own and not merged with others: every image that one of them
// names is kept.
func composeImages(file string) ([]string, error) {
	body, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var doc struct {
		Services map[string]struct {
			Image string `yaml:"image"`
		} `yaml:"services"`
	}
	if err := yaml.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	env, err := dotenv.Read(filepath.Join(filepath.Dir(file), ".env"))
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("%s: the .env file in its folder: %w", file, err)
	}
	var images []string
	for _, name := range slices.Sorted(maps.Keys(doc.Services)) {
		ref := doc.Services[name].Image
		if ref == "" {
			continue
		}
		image, err := expand(ref, env)
		if err != nil {
			return nil, fmt.Errorf("%s: image %q: %w", file, ref, err)
		}
		images = append(images, image)
	}
	return images, nil
}

// expand replaces the variables in an image's name.
func expand(ref string, env map[string]string) (string, error) {
	defaults := template.ExtractVariables(map[string]any{"image": ref}, template.DefaultPattern)
	return template.Substitute(ref, func(name string) (string, bool) {
		if v, ok := os.LookupEnv(name); ok {
			return v, true
		}
		if v, ok := env[name]; ok {
			return v, true
		}
		if defaults[name].DefaultValue == "" {
			return "*", true
		}
		return "", false // Substitute then uses the default
	})
}
