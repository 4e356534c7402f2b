//go:build integration

package integration

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestNixFlakeEvaluates evaluates every output of the flake against the stub of nixpkgs.
func TestNixFlakeEvaluates(t *testing.T) {
	root, err := filepath.Abs(repositoryRoot)
	if err != nil {
		t.Fatal(err)
	}
	src := nixFlakeSource(t, root)
	stub := "path:" + filepath.Join(src, "integration/testdata/nix/stub")
	override := []string{"--no-write-lock-file", "--override-input", "nixpkgs", stub}
	show := runCommand(t, nixCommand(t, "nix", append([]string{"flake", "show", "--json", "path:" + src}, override...)...))
	for _, output := range []string{`"packages"`, `"overlays"`, `"nixosModules"`, `"checks"`, `"devShells"`, `"formatter"`} {
		if !strings.Contains(show, output) {
			t.Errorf("flake show does not list %s:\n%s", output, show)
		}
	}
	runCommand(t, nixCommand(t, "nix", append([]string{"flake", "check", "--no-build", "path:" + src}, override...)...))
}

// nixFlakeSource copies the files that the flake reads into a folder of its own. Nix copies the
// whole folder of a flake into its store, and a working tree may be large, or change meanwhile.
func nixFlakeSource(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"flake.nix", "go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"nix", "integration/testdata/nix"} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(root, name))); err != nil {
			t.Fatal(err)
		}
	}
	// The files and folders that nix/package.nix names must exist, but may be empty.
	b, err := os.ReadFile(filepath.Join(root, "nix/package.nix"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`(?m)^\s+\.\./(\w+)$`).FindAllStringSubmatch(string(b), -1)
	if len(named) < 7 {
		t.Fatalf("only %d folders found in nix/package.nix", len(named))
	}
	for _, m := range named {
		if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, m[1]), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestNixSourceHasAllGoCode fails when nix/package.nix leaves out a folder with Go code. Then
// buildGoModule would vendor fewer modules than nix/update-vendor-hash does.
func TestNixSourceHasAllGoCode(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(repositoryRoot, "nix/package.nix"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(repositoryRoot, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range files {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			named := strings.Contains(string(b), " ../"+filepath.Base(dir)+"\n")
			if strings.HasSuffix(path, ".go") && filepath.Dir(path) != repositoryRoot && !named {
				t.Errorf("%s is not in the source of nix/package.nix", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestNixVendorHashIsCurrent fails when go.mod has changed since nix/update-vendor-hash was run.
func TestNixVendorHashIsCurrent(t *testing.T) {
	program(t, "nix", "nix-bin")
	hash := strings.TrimSpace(runCommand(t, exec.Command(filepath.Join(repositoryRoot, "nix/update-vendor-hash"), "--print")))
	b, err := os.ReadFile(filepath.Join(repositoryRoot, "nix/package.nix"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(hash, "sha256-") || !strings.Contains(string(b), `vendorHash = "`+hash+`";`) {
		t.Errorf("vendorHash in nix/package.nix is not %s; run nix/update-vendor-hash", hash)
	}
}
