//go:build integration

package integration

import (
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var nixUpdate = flag.Bool("nix.update", false, "write the golden units that the NixOS module renders")

// repositoryRoot is the root of the repository, relative to this folder.
const repositoryRoot = ".."

// nixCommand is one of Nix's programs with a store of its own. It uses no daemon and no build
// users, and leaves nothing behind.
func nixCommand(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program(t, name, "nix-bin"), args...)
	dir := t.TempDir()
	// Files and folders in a store are read-only, so they could not be removed.
	t.Cleanup(func() {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				return os.Chmod(path, 0o700)
			}
			return nil
		})
	})
	cmd.Env = append(os.Environ(),
		"NIX_CONFIG=build-users-group =\nexperimental-features = nix-command flakes",
		"NIX_STORE_DIR="+dir+"/store", "NIX_STATE_DIR="+dir+"/state", "NIX_LOG_DIR="+dir+"/log",
		"HOME="+dir, "XDG_CACHE_HOME="+dir+"/cache")
	return cmd
}

// nixEvaluation is the result of testdata/nix/harness.nix for one configuration.
type nixEvaluation struct {
	Check    string
	Warnings []string
	Refusals []string
	Units    map[string]string
	Settings json.RawMessage
	Tmpfiles map[string]map[string]map[string]struct{ Mode, User, Group string }
	Ports    []int
	Users    []string
	Groups   []string
	Hosts    string
	Certs    map[string]string // the hosts.toml files of Docker
	Docker   struct {
		Mirrors []string `json:"registry-mirrors"`
	}
}

// nixLibs are the libraries that the module is evaluated with, by name: the stub, and also
// that of nixpkgs if HUBCACHE_NIXPKGS_LIB names the lib folder of a checkout.
func nixLibs() map[string]string {
	libs := map[string]string{"stub": "null"}
	if dir := os.Getenv("HUBCACHE_NIXPKGS_LIB"); dir != "" {
		libs["nixpkgs"] = dir
	}
	return libs
}

// nixEvaluate evaluates one configuration of testdata/nix/cases.nix. If it does not evaluate,
// the error has what Nix wrote.
func nixEvaluate(t *testing.T, lib, name string) (nixEvaluation, error) {
	t.Helper()
	cmd := nixCommand(t, "nix-instantiate", "--eval", "--strict", "--json",
		"--arg", "nixpkgs", lib, "-A", name, "testdata/nix/harness.nix")
	out, err := cmd.Output()
	if err != nil {
		return nixEvaluation{}, err
	}
	var e nixEvaluation
	if err := json.Unmarshal(out, &e); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return e, nil
}

// mustNixEvaluate evaluates with the stub a configuration that must evaluate.
func mustNixEvaluate(t *testing.T, name string) nixEvaluation {
	t.Helper()
	e, err := nixEvaluate(t, "null", name)
	if err != nil {
		t.Fatalf("%s: %v", name, evaluationError(err))
	}
	return e
}

// evaluationError is what the program wrote to standard error, if anything.
func evaluationError(err error) string {
	if exit, ok := err.(*exec.ExitError); ok {
		return string(exit.Stderr)
	}
	return err.Error()
}

func TestNixFilesParse(t *testing.T) {
	var files []string
	for _, dir := range []string{"nix", "packaging", "integration/testdata/nix"} {
		err := filepath.WalkDir(filepath.Join(repositoryRoot, dir), func(path string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(path, ".nix") {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	files = append(files, filepath.Join(repositoryRoot, "flake.nix"))
	if len(files) < 10 {
		t.Fatalf("only %d .nix files found", len(files))
	}
	for _, file := range files {
		if out, err := nixCommand(t, "nix-instantiate", "--parse", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %s", file, out)
		}
	}
}

// TestNixModuleMakesSettings checks what the module makes of configurations as users write
// them, except for the units, which TestNixUnitsAreGolden compares.
func TestNixModuleMakesSettings(t *testing.T) {
	type want struct {
		refusal, warning, failure string // a phrase; "" is none
		mirrors                   []string
		ports                     []int
		users                     []string
	}
	loopback := []string{"http://127.0.0.1:5000"}
	cases := map[string]want{
		"off":            {},
		"minimal":        {},
		"docker":         {mirrors: loopback},
		"noMirror":       {},
		"full":           {mirrors: []string{"http://192.168.1.10:5005", "http://other.lan:5000"}, ports: []int{5005}, users: []string{"hubcache"}},
		"everywhere":     {mirrors: loopback},
		"ownListen":      {mirrors: loopback},
		"privilegedPort": {mirrors: []string{"http://127.0.0.1:80"}},
		"credential":     {},
		"registries":     {mirrors: []string{"http://192.168.1.10:5000"}},
		"shared":         {},
		"prune":          {mirrors: loopback},
		"boot":           {mirrors: loopback},
		"sops":           {mirrors: loopback},
		"agenix":         {mirrors: loopback},

		"pruneAndAutoPrune":   {warning: "autoPrune removes", mirrors: loopback},
		"firewallForLoopback": {warning: "listens on 127.0.0.1 alone", ports: []int{5000}},

		"halfCredential":     {refusal: "both username and passwordFile"},
		"halfRegistry":       {refusal: `registries."quay.io" needs both username and passwordFile`},
		"namedAddress":       {refusal: "must be numeric"},
		"dataInHome":         {refusal: "cannot keep files there", users: []string{"hubcache"}},
		"portTaken":          {refusal: "both want port 5000"},
		"pruneWithoutDocker": {refusal: "needs virtualisation.docker.enable"},

		"credentialInStore":         {failure: "not in the Nix store"},
		"registryCredentialInStore": {failure: "not in the Nix store"},
		"sharedKeyInStore":          {failure: "not in the Nix store"},
		"portTooHigh":               {failure: "between 0 and 65535"},
		"unknownOption":             {failure: "does not exist"},
	}
	for name, lib := range nixLibs() {
		for c, want := range cases {
			t.Run(name+"/"+c, func(t *testing.T) {
				e, err := nixEvaluate(t, lib, c)
				if want.failure != "" {
					if err == nil || !strings.Contains(evaluationError(err), want.failure) {
						t.Fatalf("evaluation should fail with %q: %v", want.failure, err)
					}
					return
				}
				if err != nil {
					t.Fatal(evaluationError(err))
				}
				checkPhrase(t, "refusals", e.Refusals, want.refusal)
				checkPhrase(t, "warnings", e.Warnings, want.warning)
				if !slices.Equal(e.Docker.Mirrors, want.mirrors) {
					t.Errorf("registry-mirrors %v, want %v", e.Docker.Mirrors, want.mirrors)
				}
				checkHostsFile(t, e)
				if !slices.Equal(e.Ports, want.ports) {
					t.Errorf("open ports %v, want %v", e.Ports, want.ports)
				}
				if !slices.Equal(e.Users, want.users) {
					t.Errorf("users %v, want %v", e.Users, want.users)
				}
			})
		}
	}
}

// TestNixSettingsNameTheAdminSocket: commands that change the cache are answered over the admin socket
// alone, and find it by the settings.
func TestNixSettingsNameTheAdminSocket(t *testing.T) {
	for c, address := range map[string]string{"minimal": "127.0.0.1:5001", "full": "127.0.0.1:5006"} {
		var settings struct{ Admin struct{ Listen []string } }
		if err := json.Unmarshal(mustNixEvaluate(t, c).Settings, &settings); err != nil {
			t.Fatal(err)
		}
		if want := []string{"unix:/run/hubcache/admin.sock", address}; !slices.Equal(settings.Admin.Listen, want) {
			t.Errorf("%s: admin.listen is %q, want %q", c, settings.Admin.Listen, want)
		}
	}
}

// checkHostsFile checks that hosts.toml names a loopback mirror too, since newer daemons do not
// verify Docker Hub's certificate without it. It must name no other mirror, since the file
// makes daemons ignore all mirrors that it does not name.
func checkHostsFile(t *testing.T, e nixEvaluation) {
	t.Helper()
	loopback := len(e.Docker.Mirrors) > 0 && (strings.Contains(e.Docker.Mirrors[0], "//127.") || strings.Contains(e.Docker.Mirrors[0], "//[::1]"))
	if named := loopback && strings.Contains(e.Hosts, `[host."`+e.Docker.Mirrors[0]+`"]`); named != loopback || !loopback && e.Hosts != "" {
		t.Errorf("mirrors %v, hosts.toml %q", e.Docker.Mirrors, e.Hosts)
	}
}

// checkPhrase checks that texts is one text that contains the phrase, or is empty if the
// phrase is.
func checkPhrase(t *testing.T, what string, texts []string, phrase string) {
	t.Helper()
	if phrase == "" {
		if len(texts) != 0 {
			t.Errorf("unexpected %s: %q", what, texts)
		}
		return
	}
	if len(texts) != 1 || !strings.Contains(texts[0], phrase) {
		t.Errorf("%s %q, want one with %q", what, texts, phrase)
	}
}

// TestNixExamplesHandTokenToSystemd checks that both examples hand the token to systemd, and
// that with agenix a new token restarts the service. (sops-nix has restartUnits for this.)
func TestNixExamplesHandTokenToSystemd(t *testing.T) {
	for name, want := range map[string][]string{
		"sops":   {"LoadCredential=dockerhub-pat:/run/secrets/dockerhub-pat"},
		"agenix": {"LoadCredential=dockerhub-pat:/run/agenix/dockerhub-pat", "dockerhub-pat.age"},
	} {
		unit := mustNixEvaluate(t, name).Units["hubcache.service"]
		for _, line := range want {
			if !strings.Contains(unit, line) {
				t.Errorf("%s: no %q in\n%s", name, line, unit)
			}
		}
	}
}

// TestNixRegistriesHaveCredentialsAndHosts checks that systemd hands over the token of each registry,
// that the settings name it by its credential, and that Docker finds each registry in the cache.
func TestNixRegistriesHaveCredentialsAndHosts(t *testing.T) {
	e := mustNixEvaluate(t, "registries")
	for _, line := range []string{"LoadCredential=registry-quay.io:/run/secrets/quay\n", "LoadCredential=registry-registry.lan_5000:/run/secrets/lan\n"} {
		if unit := e.Units["hubcache.service"]; !strings.Contains(unit, line) {
			t.Errorf("no %q in\n%s", line, unit)
		}
	}
	var settings struct {
		Registries map[string]struct {
			Username, URL string
			PasswordFile  string `json:"password_file"`
			Private       []string
		}
	}
	if err := json.Unmarshal(e.Settings, &settings); err != nil {
		t.Fatal(err)
	}
	if quay := settings.Registries["quay.io"]; quay.Username != "acme+robot" || quay.PasswordFile != "registry-quay.io" || !slices.Equal(quay.Private, []string{"acme/*"}) || len(settings.Registries) != 3 {
		t.Errorf("registries: %s", e.Settings)
	}
	for registry, server := range map[string]string{"ghcr.io": "https://ghcr.io", "quay.io": "https://quay.io", "registry.lan:5000": "http://registry.lan:5000"} {
		text := e.Certs["docker/certs.d/"+registry+"/hosts.toml"]
		if !strings.Contains(text, `server = "`+server+`"`) || !strings.Contains(text, `[host."http://192.168.1.10:5000"]`) || !strings.Contains(text, "dial_timeout") {
			t.Errorf("%s: %s", registry, text)
		}
	}
}

// TestNixSharedHasCredentials checks that systemd hands over the keys of bucket and Redis, and that the
// settings name them where it puts them.
func TestNixSharedHasCredentials(t *testing.T) {
	e := mustNixEvaluate(t, "shared")
	for name, file := range map[string]string{"shared-access-key": "access", "shared-secret-key": "secret", "shared-redis-password": "redis"} {
		if unit := e.Units["hubcache.service"]; !strings.Contains(unit, "LoadCredential="+name+":/run/secrets/"+file+"\n") {
			t.Errorf("no %s in\n%s", name, unit)
		}
	}
	var settings struct {
		Shared map[string]any
	}
	if err := json.Unmarshal(e.Settings, &settings); err != nil {
		t.Fatal(err)
	}
	const at = "/run/credentials/hubcache.service/"
	want := map[string]any{
		"bucket":    map[string]any{"endpoint": "https://s3.lan", "name": "images", "access_key_file": at + "shared-access-key", "secret_key_file": at + "shared-secret-key"},
		"lease":     map[string]any{"redis": "redis.lan:6379", "password_file": at + "shared-redis-password"},
		"advertise": "http://192.168.1.10:5000",
	}
	if !reflect.DeepEqual(settings.Shared, want) {
		t.Errorf("shared is %v", settings.Shared)
	}
}

// TestNixBuildStopsAtWrongSetting runs what the module runs when a system is built. A wrong
// setting must stop the build, and the message must name it.
func TestNixBuildStopsAtWrongSetting(t *testing.T) {
	program := hubcacheProgram(t)
	for name, complaint := range map[string]string{
		"minimal": "", "full": "", "credential": "", "ownListen": "", "registries": "", "shared": "",
		"badRegistry":    "library",
		"unknownSetting": "max_stail",
		"badBudget":      "plenty",
	} {
		t.Run(name, func(t *testing.T) {
			out, err := nixCheckSettings(t, program, mustNixEvaluate(t, name))
			if complaint == "" && err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if complaint != "" && (err == nil || !strings.Contains(out, complaint)) {
				t.Fatalf("want a complaint about %s, got %v\n%s", complaint, err, out)
			}
		})
	}
}

// nixCheckSettings runs the module's build step in a shell, with the paths of the real program
// and the real settings instead of store paths.
func nixCheckSettings(t *testing.T, program string, e nixEvaluation) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, e.Settings, 0o644); err != nil {
		t.Fatal(err)
	}
	const stored = "/nix/store/00000000000000000000000000000000-hubcache-config.yaml"
	if !strings.Contains(e.Check, stored) || !strings.Contains(e.Check, stubProgram) {
		t.Fatalf("the build step does not check the settings with the program:\n%s", e.Check)
	}
	script := strings.NewReplacer(stubProgram, program, stored, file).Replace(e.Check)
	cmd := exec.Command("bash", "-euc", script)
	cmd.Env = append(os.Environ(), "out="+file+".checked")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// stubProgram is the path of hubcache in testdata/nix/harness.nix.
const stubProgram = "/hubcache/bin/hubcache"

// TestNixUnitsAreGolden compares the rendered units with testdata/nix/golden. To accept a
// change: go test -tags integration ./integration -run TestNixUnitsAreGolden -nix.update
func TestNixUnitsAreGolden(t *testing.T) {
	for name, lib := range nixLibs() {
		for _, c := range []string{"minimal", "full", "prune"} {
			t.Run(name+"/"+c, func(t *testing.T) {
				e, err := nixEvaluate(t, lib, c)
				if err != nil {
					t.Fatal(evaluationError(err))
				}
				dir := filepath.Join("testdata/nix/golden", c)
				if *nixUpdate && name == "stub" {
					nixWriteUnits(t, dir, e.Units)
				}
				nixCompareUnits(t, dir, e.Units)
			})
		}
	}
}

// nixWriteUnits replaces the content of dir by the units.
func nixWriteUnits(t *testing.T, dir string, units map[string]string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range units {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func nixCompareUnits(t *testing.T, dir string, units map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if _, ok := units[entry.Name()]; !ok {
			t.Errorf("%s is not rendered any more", filepath.Join(dir, entry.Name()))
		}
	}
	for name, text := range units {
		golden, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%v", err)
		} else if string(golden) != text {
			t.Errorf("%s differs from the rendered unit:\n%s", filepath.Join(dir, name), text)
		}
	}
}

// TestNixPackagingUnitsAreRendered fails when packaging/systemd differs from nix/units.nix. Run
// nix/render-units then.
func TestNixPackagingUnitsAreRendered(t *testing.T) {
	var units map[string]string
	out := runCommand(t, nixCommand(t, "nix-instantiate", "--eval", "--strict", "--json", filepath.Join(repositoryRoot, "nix/packaging.nix")))
	if err := json.Unmarshal([]byte(out), &units); err != nil {
		t.Fatal(err)
	}
	nixCompareUnits(t, filepath.Join(repositoryRoot, "packaging/systemd"), units)
}

// TestNixHoldIsForTheGroup checks that members of the group and no other users can hold off a
// prune, and that no member can replace the lock that others wait for.
func TestNixHoldIsForTheGroup(t *testing.T) {
	e := mustNixEvaluate(t, "prune")
	if !slices.Contains(e.Groups, "hubcache") {
		t.Errorf("no group hubcache in %v", e.Groups)
	}
	for path, mode := range map[string]string{"": "0750", "/gate": "0640", "/run": "0640"} {
		path = "/run/hubcache/hold" + path
		for _, rule := range e.Tmpfiles["hubcache"][path] {
			if rule.Mode != mode || rule.User != "root" || rule.Group != "hubcache" {
				t.Errorf("%s: %+v", path, rule)
			}
		}
		if len(e.Tmpfiles["hubcache"][path]) != 1 {
			t.Errorf("no rule creates %s", path)
		}
	}
}

// TestNixUnitsAreAcceptedBySystemd runs systemd-analyze on the units, and checks its rating of
// the service's isolation.
func TestNixUnitsAreAcceptedBySystemd(t *testing.T) {
	analyze := program(t, "systemd-analyze", "systemd")
	for _, c := range []string{"minimal", "full", "prune", "credential"} {
		t.Run(c, func(t *testing.T) {
			e := mustNixEvaluate(t, c)
			dir := t.TempDir()
			args := []string{"verify", "--man=no", "--recursive-errors=no"}
			for name, text := range e.Units {
				file := filepath.Join(dir, name)
				// systemd-analyze verify checks that the command exists.
				text = strings.ReplaceAll(text, stubProgram, "/bin/true")
				if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
				args = append(args, file)
			}
			out, err := exec.Command(analyze, args...).CombinedOutput()
			if err != nil || len(out) > 0 {
				t.Errorf("systemd-analyze verify: %v\n%s", err, out)
			}
			// The threshold is in tenths: 1.5.
			out, err = exec.Command(analyze, "security", "--offline=true", "--threshold=15", filepath.Join(dir, "hubcache.service")).CombinedOutput()
			if err != nil {
				t.Errorf("systemd-analyze security: %v\n%s", err, out)
			}
		})
	}
}
