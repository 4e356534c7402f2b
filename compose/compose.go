// Package compose finds the images that a compose file names. It follows include, extends,
// further YAML documents, anchors and merges as Docker Compose does, with Compose's own library.
package compose

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/interpolation"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/distribution/reference"
)

// Any stands in an [Image.Name] where the file has a variable that is set nowhere. It can stand
// for any text, also for an empty one, a slash, a colon or a whole reference.
const Any = "\x00"

// Image is an image that a compose file names.
type Image struct {
	// Name is what the file has, with its variables replaced, and with [Any] for those that are
	// set nowhere. Without Any it is a valid reference or image ID.
	Name string
	// Where is the key in the file, for people: services.web.image.
	Where string
}

// Project says which files to read, as the flags of docker compose do.
type Project struct {
	// Files are the compose files, each merged over those before it. Paths in all of them are
	// relative to the folder of the first.
	Files []string

	// EnvFiles have variables, the later ones over the earlier ones. None: the file .env in the
	// folder of the first compose file, if there is one.
	EnvFiles []string
}

// Images is [Project.Images] for a single file.
func Images(ctx context.Context, file string) ([]Image, error) {
	return Project{Files: []string{file}}.Images(ctx)
}

// Images returns the images that the files name, ordered by [Image.Where]: those that
// services, jobs and hooks of every profile run, and those that they mount or build from. A service
// that is built and has no image has the name that Compose gives it. That alone names no image.
//
// Variables come from the environment, then from the env files, then from the defaults in the
// compose files.
//
// Errors: a file that it needs can't be read, or can't be understood as a whole; together they name
// no image; an image's name is not valid.
func (p Project) Images(ctx context.Context) ([]Image, error) {
	if len(p.Files) == 0 {
		return nil, errors.New("no compose file is named")
	}
	name := strings.Join(p.Files, ", ")
	paths := make([]string, len(p.Files))
	for i, file := range p.Files {
		path, err := filepath.Abs(file)
		if err != nil {
			return nil, err
		}
		paths[i] = path
	}
	environment, err := environmentOf(filepath.Dir(paths[0]), p.EnvFiles)
	if err != nil {
		return nil, err
	}
	model, err := load(ctx, paths, environment)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", name, strings.ReplaceAll(err.Error(), placeholder, "${a variable that is set nowhere}"))
	}
	images, err := imagesOf(model)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("%s names no image", name)
	}
	slices.SortFunc(images, func(a, b Image) int { return strings.Compare(a.Where, b.Where) })
	return images, nil
}

// Variables by which Compose finds its files.
const (
	filesVariable     = "COMPOSE_FILE"
	separatorVariable = "COMPOSE_PATH_SEPARATOR"
)

// FromEnvironment returns the project whose files COMPOSE_FILE names, in the environment or in the
// env files, or without env files in the file .env of the current folder. ok is false if it
// is set nowhere. Errors: an env file can't be read.
func FromEnvironment(envFiles []string) (p Project, ok bool, err error) {
	environment, err := environmentOf(".", envFiles)
	if err != nil {
		return p, false, err
	}
	separator := environment[separatorVariable]
	if separator == "" {
		separator = string(os.PathListSeparator)
	}
	for file := range strings.SplitSeq(environment[filesVariable], separator) {
		if file != "" {
			p.Files = append(p.Files, file)
		}
	}
	p.EnvFiles = envFiles
	return p, len(p.Files) > 0, nil
}

// environmentOf returns the variables of the environment and of the env files; without any of the
// .env file in the folder.
func environmentOf(dir string, files []string) (types.Mapping, error) {
	environment := types.NewMapping(os.Environ())
	if len(files) == 0 {
		path := filepath.Join(dir, ".env")
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return environment, nil
		}
		files = []string{path}
	}
	fromFile, err := dotenv.GetEnvFromFile(environment, files)
	if err != nil {
		return nil, err
	}
	return environment.Merge(fromFile), nil
}

// load returns the files as Compose merges them, as a tree.
func load(ctx context.Context, paths []string, environment types.Mapping) (model map[string]any, err error) {
	// The library checks the file's types only where it validates, and this is skipped: a variable
	// that is set nowhere would fail it in places that have nothing to do with images.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("not a compose file: %v", p)
		}
	}()
	_, named := environment[projectVariable]
	details := types.ConfigDetails{
		WorkingDir:  filepath.Dir(paths[0]),
		ConfigFiles: types.ToConfigFiles(paths),
		Environment: environment.Clone(),
	}
	return loader.LoadModelWithContext(ctx, details, func(o *loader.Options) {
		o.SkipValidation, o.SkipNormalization, o.SkipDefaultValues = true, true, true
		o.SetProjectName("project", true)
		o.Interpolate = &interpolation.Options{
			LookupValue: details.LookupEnv,
			Substitute: func(text string, lookup lookup) (string, error) {
				if !named { // the library sets it, but the one who deploys may choose another name
					lookup = without(lookup, projectVariable)
				}
				return substitute(text, lookup)
			},
		}
	})
}

// projectVariable is the variable that Compose sets to the name of the project.
const projectVariable = "COMPOSE_PROJECT_NAME"

func without(lookup lookup, name string) lookup {
	return func(other string) (string, bool) {
		if other == name {
			return "", false
		}
		return lookup(other)
	}
}

// imagesOf collects the images from the whole model.
func imagesOf(model map[string]any) ([]Image, error) {
	c := collector{}
	for _, kind := range []string{"services", "jobs"} {
		all, err := mapping(model[kind], kind)
		if err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(all)) {
			c.container(kind+"."+name, all[name])
		}
	}
	if len(c.images) > 0 { // else the file names none
		c.images = append(c.images, builtImages(model)...)
	}
	return c.images, errors.Join(c.errs...)
}

// builtImages returns the images of the services that are built and have no image. Compose names
// them after the project and the service, the first version of it with an underscore. The one who
// deploys chooses the project's name.
func builtImages(model map[string]any) (images []Image) {
	services, _ := model["services"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(services)) {
		service, _ := services[name].(map[string]any)
		if image, _ := service["image"].(string); image != "" || service["build"] == nil {
			continue
		}
		for _, between := range []string{"-", "_"} {
			images = append(images, Image{Name: Any + between + name, Where: "services." + name + ".build"})
		}
	}
	return images
}

// collector gathers images and what is wrong.
type collector struct {
	images []Image
	errs   []error
}

// container collects the images that a service, a job or a hook needs.
func (c *collector) container(where string, v any) {
	container, err := mapping(v, where)
	if err != nil {
		c.errs = append(c.errs, err)
		return
	}
	c.add(where+".image", container["image"])
	volumes, _ := container["volumes"].([]any)
	for i, volume := range volumes {
		if v, _ := volume.(map[string]any); v["type"] == "image" {
			c.add(fmt.Sprintf("%s.volumes[%d].source", where, i), v["source"])
		}
	}
	hooks, _ := container["pre_start"].([]any)
	for i, hook := range hooks {
		c.container(fmt.Sprintf("%s.pre_start[%d]", where, i), hook)
	}
	build, _ := container["build"].(map[string]any)
	contexts, _ := build["additional_contexts"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(contexts)) {
		text, _ := contexts[name].(string)
		if ref, ok := strings.CutPrefix(text, "docker-image://"); ok {
			c.add(where+".build.additional_contexts."+name, ref)
		}
	}
}

// add collects one image. v is nil if there is none.
func (c *collector) add(where string, v any) {
	text, ok := v.(string)
	if v != nil && !ok {
		c.errs = append(c.errs, fmt.Errorf("%s is %v and not a name", where, v))
		return
	}
	if text == "" {
		return
	}
	name := strings.ReplaceAll(text, placeholder, Any)
	if _, err := reference.ParseAnyReference(name); err != nil && !strings.Contains(name, Any) {
		c.errs = append(c.errs, fmt.Errorf("%s: %q: %w", where, name, err))
		return
	}
	c.images = append(c.images, Image{Name: name, Where: where})
}

// mapping returns v as a mapping; a missing one is empty.
func mapping(v any, where string) (map[string]any, error) {
	m, ok := v.(map[string]any)
	if v != nil && !ok {
		return nil, fmt.Errorf("%s is not a mapping", where)
	}
	return m, nil
}

// placeholder stands for a variable that is set nowhere while the library reads the file. It is
// a number that also is valid as a port, because the library parses the ports.
const placeholder = "60807"

// anyAddress is a published port whose address is a variable that is set nowhere. An image's
// name has no two colons without a slash.
var anyAddress = regexp.MustCompile(`^` + placeholder + `(:[0-9-]*:[0-9-]+(/[a-z]+)?)$`)
