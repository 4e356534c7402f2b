package dockerhost

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// installed is a file system with the unit of the package, and drop-ins and other files by path.
func installed(t *testing.T, files map[string]string) string {
	t.Helper()
	unit, err := os.ReadFile("../../../../packaging/systemd/hubcache.service")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	put := func(path, content string, mode fs.FileMode) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	put("usr/lib/systemd/system/hubcache.service", string(unit), 0o644)
	for path, content := range files {
		mode := fs.FileMode(0o600)
		if strings.HasSuffix(path, ".conf") || strings.Contains(path, "public") {
			mode = 0o644
		}
		put(path, content, mode)
	}
	return root
}

// TestServiceReadsTheToken: the packaged service, which runs as a user of its own, reads its
// credential and files that everybody may read, and nothing that is root's or hidden from it.
func TestServiceReadsTheToken(t *testing.T) {
	const dropIn = "etc/systemd/system/hubcache.service.d/local.conf"
	for _, c := range []struct {
		name, path string
		files      map[string]string
		says       string // "": it can
	}{
		{name: "none"},
		{name: "the credential", path: "dockerhub-pat", files: map[string]string{"etc/credstore/dockerhub-pat": "x"}},
		{name: "the credential in /run", path: "dockerhub-pat", files: map[string]string{"run/credstore/dockerhub-pat": "x"}},
		{name: "the credential isn't there", path: "dockerhub-pat", says: `gets the credential "dockerhub-pat" from /etc/credstore, and it isn't there`},
		{name: "another credential", path: "token", says: `has no credential "token" (it has: dockerhub-pat)`},
		{name: "a drop-in with the other credential", path: "token", files: map[string]string{dropIn: "[Service]\nLoadCredential=token:/etc/secret\n"}},
		{name: "a drop-in without credentials", path: "dockerhub-pat", files: map[string]string{dropIn: "[Service]\nLoadCredential=\n", "etc/credstore/dockerhub-pat": "x"},
			says: `has no credential "dockerhub-pat" (it has: none)`},
		{name: "a credential in the unit", path: "token", files: map[string]string{dropIn: "[Service]\nSetCredentialEncrypted=token: \\\n abc\n"}},
		{name: "root's file", path: "/etc/hubcache/token", files: map[string]string{"etc/hubcache/token": "x"}, says: "it runs as a user of its own, hubcache-server, which may not (mode 0600)"},
		{name: "everybody's file", path: "/etc/hubcache/public", files: map[string]string{"etc/hubcache/public": "x"}},
		{name: "a file that isn't on this machine", path: "/etc/hubcache/token"},
		{name: "home", path: "/home/jane/token", says: "/home is empty for the service"},
		{name: "root's home", path: "/root/../root/token", says: "/root is empty for the service"},
		{name: "tmp", path: "/tmp/public", files: map[string]string{"tmp/public": "x"}, says: "the service has its own /tmp"},
		{name: "a folder that looks like home", path: "/homework/public", files: map[string]string{"homework/public": "x"}},
		{name: "a service of root", path: "/etc/hubcache/token", files: map[string]string{"etc/hubcache/token": "x", dropIn: "[Service]\nDynamicUser=no\nUser=\n"}},
		{name: "home that isn't hidden", path: "/home/public", files: map[string]string{"home/public": "x", dropIn: "[Service]\nProtectHome=no\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := installed(t, c.files)
			openUp(t, root)
			s, err := InstalledService(root)
			if err != nil {
				t.Fatal(err)
			}
			err = s.CheckPasswordFile(c.path)
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), TokenRecipe)) {
				t.Errorf("%v; want %q and the recipe", err, c.says)
			}
		})
	}
}

// openUp lets everybody enter a folder, whatever the umask is.
func openUp(t *testing.T, dir string) {
	t.Helper()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestServiceUsesItsSettings: only the settings that the unit names are checked with it, and
// without a unit nothing is.
func TestServiceUsesItsSettings(t *testing.T) {
	s, err := InstalledService(installed(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if !s.Uses("/etc/hubcache/config.yaml") || s.Uses("/etc/hubcache/other.yaml") || s.Uses("config.yaml") || s.Uses("") {
		t.Errorf("%+v", s)
	}
	if _, err := InstalledService(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestServiceTakesDropInsInOrder: a drop-in of /etc takes the place of one with the same name in
// /usr/lib, and a unit in /etc that of the package's.
func TestServiceTakesDropInsInOrder(t *testing.T) {
	root := installed(t, map[string]string{
		"usr/lib/systemd/system/hubcache.service.d/10.conf": "[Service]\nUser=a\n",
		"etc/systemd/system/hubcache.service.d/10.conf":     "[Service]\nUser=b\n",
		"usr/lib/systemd/system/hubcache.service.d/05.conf": "[Service]\nUser=c\n",
	})
	if s, err := InstalledService(root); err != nil || s.user != "b" {
		t.Errorf("%+v, %v", s, err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/systemd/system/hubcache.service"), []byte("[Service]\nExecStart=hubcache serve --config=/srv/c.yaml\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if s, err := InstalledService(root); err != nil || !s.Uses("/srv/c.yaml") || s.dynamic {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestOneTokenRecipe: the package's config.yaml, operations.md and doctor say the same, and the
// package makes it work: it makes the folder, and the unit takes the token from there.
func TestOneTokenRecipe(t *testing.T) {
	for path, parts := range map[string][]string{
		"packaging/deb/config.yaml":          {tokenCommand, "password_file: dockerhub-pat", "systemctl restart hubcache"},
		"docs/use/operations.md":             {tokenCommand, "password_file: dockerhub-pat", "systemctl restart hubcache"},
		"packaging/deb/postinst":             {"install -d -m 0700 /etc/credstore"},
		"packaging/systemd/hubcache.service": {"LoadCredential=dockerhub-pat\n"},
	} {
		body, err := os.ReadFile(filepath.Join("../../../..", path))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range parts {
			if !strings.Contains(string(body), part) {
				t.Errorf("%s doesn't say %q", path, part)
			}
		}
		if strings.Contains(string(body), "/etc/hubcache/token") {
			t.Errorf("%s has another recipe", path)
		}
	}
	for _, part := range []string{tokenCommand, "password_file: dockerhub-pat", "systemctl restart hubcache"} {
		if !strings.Contains(TokenRecipe, part) {
			t.Errorf("doctor doesn't say %q", part)
		}
	}
}

// TestKeepFilesThatThePruneCanNotRead: its unit has no homes, a /tmp of its own, and a user that owns
// nothing.
func TestKeepFilesThatThePruneCanNotRead(t *testing.T) {
	unit, err := os.ReadFile("../../../../packaging/systemd/hubcache-docker-prune.service")
	if err != nil {
		t.Fatal(err)
	}
	root := installed(t, map[string]string{"usr/lib/systemd/system/" + pruneUnit: string(unit), "srv/public/compose.yml": "", "srv/closed.yml": ""})
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := InstalledPrune(root)
	if err != nil || !s.Uses("/etc/hubcache/config.yaml") {
		t.Fatalf("%+v, %v", s, err)
	}
	for path, want := range map[string]string{
		"/root/.abra/recipes/nextcloud/compose.yml": "/root is empty for the service",
		"/home/jane/compose.yml":                    "/home is empty for the service",
		"/tmp/compose.yml":                          "the service has its own /tmp",
		"/srv/closed.yml":                           "runs as a user of its own",
		"/srv/public/compose.yml":                   "",
		"/srv/missing.yml":                          "",
	} {
		got := s.CheckKeepFiles([]string{path})
		if want == "" && len(got) > 0 || want != "" && (len(got) != 1 || !strings.Contains(got[0], want)) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
