package hubcache

import (
	"bytes"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/hubcache/hubcache/"

// floors names, for each package, the packages that it may import. Imports point down
// (docs/design/overview.md, "Floor plan"): a change that needs a new import moves code first,
// in a commit of its own.
var floors = map[string][]string{
	"calls":           {},
	"cooldown":        {},
	"disk":            {},
	"name":            {},
	"lru":             {},
	"slots":           {},
	"image":           {},
	"boltfile":        {},
	"index":           {"boltfile"},
	"history":         {"boltfile"},
	"quarantine":      {},
	"storage":         {"disk", "image", "index", "lru"},
	"answer":          {},
	"auth":            {"answer", "calls", "cooldown", "name"},
	"upstream":        {"answer", "auth", "cooldown"},
	"content":         {"storage"},
	"fetch":           {"content", "cooldown", "slots", "storage"},
	"tier":            {"cooldown", "fetch", "storage", "tier/bucket", "tier/lease"},
	"tier/bucket":     {},
	"tier/lease":      {},
	"registry":        {"calls", "content", "cooldown", "fetch", "image", "name", "quarantine", "slots", "storage", "upstream"},
	"inventory":       {"image", "name", "storage"},
	"transfer":        {"image", "name", "storage"},
	"admin":           {"fetch", "history", "inventory", "name", "quarantine", "registry", "storage", "transfer", "upstream", "warm"},
	"compose":         {},
	"admin/dashboard": {"admin", "inventory", "name", "registry"},
	"warm":            {"compose", "name", "registry"},
	"prune":           {"boltfile", "compose", "disk"}, // boltfile: its records may be damaged too
	"cmd/hubcache":    {"admin", "cmd/hubcache/internal/adminclient", "cmd/hubcache/internal/dockerhost", "cmd/hubcache/internal/server", "cmd/hubcache/internal/settings", "compose", "name", "prune", "warm", "storage", "transfer"},

	"cmd/hubcache/internal/adminclient": {"admin", "cmd/hubcache/internal/settings"},
	"cmd/hubcache/internal/dockerhost":  {"admin", "auth", "cmd/hubcache/internal/adminclient", "cmd/hubcache/internal/settings", "name", "prune"},
	"cmd/hubcache/internal/server":      {"admin", "admin/dashboard", "auth", "boltfile", "cmd/hubcache/internal/settings", "disk", "fetch", "history", "inventory", "quarantine", "registry", "storage", "tier", "tier/bucket", "tier/lease", "upstream", "warm"},
	"cmd/hubcache/internal/settings":    {"disk", "name"},
}

// below returns the packages that a package may reach through others.
func below(pkg string) []string {
	all := slices.Clone(floors[pkg])
	for _, p := range floors[pkg] {
		all = append(all, below(p)...)
	}
	return all
}

// TestFloorPlan fails when a package imports one that it must not know. Tests may also import
// what lies further below, and the fakes in integration/; nothing else above their floor.
func TestFloorPlan(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || d.Name() == "integration" || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || filepath.Dir(path) == "." {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		known, ok := floors[pkg]
		if !ok {
			t.Errorf("%s: package %q is not on the floor plan", path, pkg)
			return nil
		}
		seen[pkg] = true
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			name := strings.Trim(spec.Path.Value, `"`)
			other, ours := strings.CutPrefix(name, module)
			if !ours || other == pkg || slices.Contains(known, other) {
				continue
			}
			if strings.HasSuffix(path, "_test.go") && (strings.HasPrefix(other, "integration/") || slices.Contains(below(pkg), other)) {
				continue
			}
			t.Errorf("%s imports %s; %s may import only %v", path, other, pkg, known)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range floors {
		if !seen[pkg] {
			t.Errorf("the floor plan names %q, and there is no such package", pkg)
		}
	}
}

// TestOnlyPackageDiskMeasuresDisks: the kernel counts in fragments, not in blocks, which package
// disk knows. Nobody else calls statfs.
func TestOnlyPackageDiskMeasuresDisks(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Dir(path) == "disk" {
			return err
		}
		source, err := os.ReadFile(path)
		if bytes.Contains(source, []byte(".Statfs")) {
			t.Errorf("%s calls statfs; disk.Measure does it", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
