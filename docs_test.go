package hubcache

import (
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v3"
)

// exampleConfig has every setting: a test of the settings compares it with the program.
const exampleConfig = "docs/use/config.example.yaml"

// TestDocuments fails when a document names a test, a command, a flag, a setting or a file
// that doesn't exist, or has a link that leads nowhere.
func TestDocuments(t *testing.T) {
	files := repository(t)
	pages := map[string]page{}
	for _, path := range files {
		switch {
		case filepath.Ext(path) == ".md":
			pages[path] = readMarkdown(path, read(t, path))
		case path == exampleConfig:
			pages[path] = readComments(path, read(t, path))
		}
	}
	var known facts
	known.tests = declaredTests(t, files)
	known.settings = settingKeys(t, read(t, exampleConfig))
	binary := buildProgram(t)
	known.command = program(binary)
	known.files = files
	known.anchors = map[string][]string{}
	for path, p := range pages {
		known.anchors[path] = p.anchors
	}
	for _, path := range slices.Sorted(maps.Keys(pages)) {
		for _, fault := range known.faults(pages[path]) {
			t.Errorf("%s: %s", path, fault)
		}
	}
}

// TestCommandPageIsCurrent fails when docs/use/cli.md isn't what the commands' help says now.
// What is written depends neither on the machine nor on the user.
func TestCommandPageIsCurrent(t *testing.T) {
	page := filepath.Join(t.TempDir(), "cli.md")
	cmd := exec.Command(buildProgram(t), "docs", "cli", page)
	cmd.Env = []string{"HOME=/home/jane", "STATE_DIRECTORY=/srv/cache", "HUBCACHE_ADMIN=192.0.2.1:80", "HUBCACHE_LISTEN=192.0.2.1:90", "TZ=Asia/Tokyo"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if read(t, page) != read(t, "docs/use/cli.md") {
		t.Error(`docs/use/cli.md is out of date: run "make docs"`)
	}
}

// TestEveryMetricIsDocumented fails when docs/use/monitoring.md names other metrics or labels than the
// server has: those that the test of the admin listener's metrics knows.
func TestEveryMetricIsDocumented(t *testing.T) {
	var have, named []string
	for _, m := range regexp.MustCompile(`(?m)^(hubcache_\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? `).FindAllStringSubmatch(read(t, "admin/testdata/metrics.txt"), -1) {
		var labels []string
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" { // every histogram has it
				labels = append(labels, l[1])
			}
		}
		have = append(have, metricRow(m[1], labels))
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(hubcache_\\w+)` \\|([^|]*)\\|").FindAllStringSubmatch(read(t, "docs/use/monitoring.md"), -1) {
		named = append(named, metricRow(m[1], regexp.MustCompile(`\w+`).FindAllString(m[2], -1)))
	}
	slices.Sort(have)
	slices.Sort(named)
	have = slices.Compact(have)
	for _, row := range have {
		if !slices.Contains(named, row) {
			t.Errorf("the table of docs/use/monitoring.md lacks %s", row)
		}
	}
	for _, row := range named {
		if !slices.Contains(have, row) {
			t.Errorf("docs/use/monitoring.md has %s, and the server hasn't", row)
		}
	}
}

// metricRow is a metric with its labels, in alphabetical order.
func metricRow(name string, labels []string) string {
	slices.Sort(labels)
	return name + "{" + strings.Join(labels, ", ") + "}"
}

// TestSourcesNameRealDocuments fails when a comment, a message or a script names a page
// that isn't there.
func TestSourcesNameRealDocuments(t *testing.T) {
	files := repository(t)
	for _, path := range files {
		if filepath.Ext(path) == ".md" || strings.HasPrefix(path, "docs_") {
			continue
		}
		for _, fault := range wrongDocuments(read(t, path), files) {
			t.Errorf("%s: %s", path, fault)
		}
	}
}

// repository lists the files of the source tree, by their slash-separated paths.
func repository(t *testing.T) (files []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.Name() == ".git", path == "dist", path == "bin":
			if d.IsDir() {
				return filepath.SkipDir
			}
		case d.Type().IsRegular():
			files = append(files, filepath.ToSlash(path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var testDeclaration = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark|Example)\w*)\(`)

func declaredTests(t *testing.T, files []string) (names []string) {
	t.Helper()
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			for _, m := range testDeclaration.FindAllStringSubmatch(read(t, path), -1) {
				names = append(names, m[1])
			}
		}
	}
	return names
}

// settingKeys returns the dotted keys of a settings file, those of its sections included.
func settingKeys(t *testing.T, text string) (keys []string) {
	t.Helper()
	var tree map[string]any
	if err := yaml.Unmarshal([]byte(text), &tree); err != nil {
		t.Fatal(err)
	}
	var walk func(prefix string, m map[string]any)
	walk = func(prefix string, m map[string]any) {
		for k, v := range m {
			keys = append(keys, prefix+k)
			if section, ok := v.(map[string]any); ok {
				walk(prefix+k+".", section)
			}
		}
	}
	walk("", tree)
	return keys
}

// buildProgram builds hubcache and returns its path.
func buildProgram(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "hubcache")
	// As `make build` does it, so that both share what is compiled.
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/hubcache")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// program returns a function that asks the program's help for a command.
func program(binary string) func(path string) (command, bool) {
	help := map[string]func() string{}
	return func(path string) (command, bool) {
		if help[path] == nil {
			help[path] = sync.OnceValue(func() string {
				out, err := exec.Command(binary, append(strings.Fields(path)[1:], "--help")...).Output()
				if err != nil {
					return "" // no such command
				}
				return string(out)
			})
		}
		return readHelp(path, help[path]())
	}
}

// command is what the program's help says of a command.
type command struct {
	subcommands bool
	flags       []string // without the dashes
}

var (
	helpUsage = regexp.MustCompile(`(?m)^Usage:\n  (hubcache.*)$`)
	helpFlag  = regexp.MustCompile(`(?m)^ +(?:-\w, )?--([\w-]+)`)
)

// readHelp reads the help of a command. For a word that is no command the program shows
// the help of the command before it.
func readHelp(path, help string) (c command, ok bool) {
	usage := helpUsage.FindStringSubmatch(help)
	if usage == nil || !strings.HasPrefix(usage[1]+" ", path+" ") {
		return command{}, false
	}
	c.subcommands = strings.Contains(help, "\nAvailable Commands:\n")
	for _, m := range helpFlag.FindAllStringSubmatch(help, -1) {
		c.flags = append(c.flags, m[1])
	}
	return c, true
}
