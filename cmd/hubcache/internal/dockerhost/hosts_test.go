package dockerhost

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// three are registries as a server may have them: Docker Hub, one with nothing special, and one of
// this network by plain http.
var three = []Registry{NewRegistry(hubName, ""), NewRegistry("ghcr.io", ""), NewRegistry("registry.lan:5000", "http://registry.lan:5000")}

// TestSetupWritesAFileForEachRegistry: engines that read hosts.toml get one for each registry. It
// names the cache first, limits how long a cache that is gone is waited for, and has the capability
// referrers only for an engine that knows it. An undo removes all of them.
func TestSetupWritesAFileForEachRegistry(t *testing.T) {
	for _, test := range []struct {
		version    string
		containerd bool
		files      int
		referrers  bool
		note       string
	}{
		{"20.10.24", false, 0, false, "such as 10.0.0.1:5000/ghcr.io/…"},
		{"27.5.1", true, 0, false, "such as 10.0.0.1:5000/ghcr.io/…"},
		{"28.5.2", false, 3, false, "such as 10.0.0.1:5000/ghcr.io/…"},
		{"28.5.2", true, 3, false, ""},
		{"29.0.4", true, 3, false, ""},
		{"29.1.0", true, 3, true, ""},
	} {
		d := startDaemon(t, `{"registry-mirrors": ["https://other.example"]}`, daemonOptions{Version: test.version, Containerd: test.containerd})
		s, out := newSetup(d, "http://10.0.0.1:5000")
		s.Registries = three
		if err := s.Run(t.Context(), true, false); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "…") != (test.note != "") || !strings.Contains(out.String(), test.note) {
			t.Errorf("%s: want the note %q\n%s", test.version, test.note, out)
		}
		files, _ := filepath.Glob(filepath.Join(d.certs, "*", "hosts.toml"))
		if len(files) != test.files {
			t.Fatalf("%s: %v, want %d", test.version, files, test.files)
		}
		for _, path := range files {
			body := contentOf(t, path)
			p, err := parseHosts([]byte(body))
			if err != nil || p.hosts[0] != "http://10.0.0.1:5000" || p.dialTimeout != dialTimeout || slices.Contains(p.capabilities, "referrers") != test.referrers {
				t.Errorf("%s: %v\n%s", test.version, err, body)
			}
			hub := strings.HasSuffix(filepath.Dir(path), hubName)
			if want := hub; strings.Contains(body, "https://other.example") != want {
				t.Errorf("%s: it has the engine's other mirror: %v, want %v\n%s", path, !want, want, body)
			}
		}
		out.Reset()
		if err := s.Run(t.Context(), true, false); err != nil || !strings.Contains(out.String(), "Nothing to change") {
			t.Errorf("the second time: %v\n%s", err, out)
		}
		s.Registries = nil // the undo need not know what was configured
		if err := s.Run(t.Context(), true, true); err != nil {
			t.Fatal(err)
		}
		if left, _ := filepath.Glob(filepath.Join(d.certs, "*", "*")); len(left) > 0 {
			t.Errorf("after the undo: %v", left)
		}
	}
}

// TestHostsFileKeepsCertificates: a client that finds a hosts.toml looks for no certificates by
// itself, so the file names those of the registry and of the cache.
func TestHostsFileKeepsCertificates(t *testing.T) {
	certs := t.TempDir()
	for _, file := range []string{"registry.lan_5000_/ca.crt", "registry.lan_5000_/client.cert", "registry.lan_5000_/client.key", "cache.lan:5000/ca.crt"} {
		writeFile(t, filepath.Join(certs, file), "x")
	}
	h := hostsFile{registry: NewRegistry("registry.lan:5000", ""), mirrors: []string{"https://cache.lan:5000"}, certs: certs}
	want := strings.ReplaceAll(`server = "https://registry.lan:5000"
ca = ["CERTS/registry.lan_5000_/ca.crt"]
client = [["CERTS/registry.lan_5000_/client.cert", "CERTS/registry.lan_5000_/client.key"]]

[host."https://cache.lan:5000"]
  capabilities = ["pull", "resolve"]
  dial_timeout = "2s"
  ca = ["CERTS/cache.lan:5000/ca.crt"]
`, "CERTS", certs)
	if got := h.text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, want := fileName(certs, h.registry.Name), filepath.Join(certs, "registry.lan_5000_", "hosts.toml"); got != want {
		t.Errorf("the file is %s, and containerd reads %s", got, want)
	}
}

// TestHostsFilesOfOthersStay: setup writes none of several files if one of them is somebody else's,
// and is content with one that names the cache.
func TestHostsFilesOfOthersStay(t *testing.T) {
	d := startDaemon(t, "", daemonOptions{Version: "29.1.0", Containerd: true})
	s, out := newSetup(d, loopback)
	s.Registries = three
	path := filepath.Join(d.certs, "ghcr.io", "hosts.toml")
	const theirs = "server = \"https://ghcr.io\"\n[host.\"https://mirror.example\"]\n"
	writeFile(t, path, theirs)
	if err := s.Run(t.Context(), true, false); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "was not written by hubcache") {
		t.Errorf("%v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(d.certs, "*", "*")); len(left) != 1 || contentOf(t, path) != theirs {
		t.Errorf("%v; it is %q", left, contentOf(t, path))
	}
	const withOurs = theirs + "[host.\"" + loopback + "/\"]\n"
	writeFile(t, path, withOurs)
	for _, undo := range []bool{false, true} {
		if err := s.Run(t.Context(), true, undo); err != nil {
			t.Errorf("undo %v: %v\n%s", undo, err, out)
		}
		if contentOf(t, path) != withOurs {
			t.Errorf("undo %v: it is %q", undo, contentOf(t, path))
		}
	}
}

// TestSetupNamesFilesOfEarlierRuns: a registry that this host doesn't know of keeps its file.
func TestSetupNamesFilesOfEarlierRuns(t *testing.T) {
	d := startDaemon(t, "", daemonOptions{Version: "29.1.0", Containerd: true})
	s, out := newSetup(d, loopback)
	s.Registries = three
	if err := s.Run(t.Context(), true, false); err != nil {
		t.Fatal(err)
	}
	s.Registries = three[:1]
	path := filepath.Join(d.certs, "ghcr.io", "hosts.toml")
	if err := s.Run(t.Context(), true, false); err != nil || !strings.Contains(out.String(), path+" is of an earlier run") || contentOf(t, path) == "" {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestParseHostsAsContainerdDoes: the hosts in the order of the file.
func TestParseHostsAsContainerdDoes(t *testing.T) {
	p, err := parseHosts([]byte(`
server = "https://ghcr.io"
[host."https://z.example"]
  capabilities = ["pull"]
[host."https://z.example".header]
  x = "y"
[host.'https://a.example']
  dial_timeout = "1s"
`))
	if err != nil || !slices.Equal(p.hosts, []string{"https://z.example", "https://a.example"}) {
		t.Errorf("%v %v", p, err)
	}
	if found, first := p.asks([]string{"https://a.example/"}); !found || first {
		t.Errorf("found %v, first %v", found, first)
	}
	if _, err := parseHosts([]byte("server = ")); err == nil {
		t.Error("no error for a broken file")
	}
	if d, err := time.ParseDuration(dialTimeout); err != nil || d > 5*time.Second {
		t.Errorf("%v %v", d, err)
	}
}

// FuzzHostsFile: whatever the name and the URL, the file that is written is read back as it was meant.
func FuzzHostsFile(f *testing.F) {
	f.Add("ghcr.io", "http://10.0.0.1:5000")
	f.Add("registry.lan:5000", "https://cache.example/hub")
	f.Fuzz(func(t *testing.T, name, mirror string) {
		if !ValidRegistry(name) || checkMirror(mirror) != nil || strings.ContainsFunc(mirror, func(r rune) bool { return r < ' ' || r > '~' }) {
			return
		}
		p, err := parseHosts([]byte(hostsFile{registry: NewRegistry(name, ""), mirrors: []string{mirror}, certs: "/does/not/exist"}.text()))
		if err != nil || len(p.hosts) != 1 || p.hosts[0] != mirror {
			t.Errorf("%q %q: %v %v", name, mirror, p, err)
		}
	})
}

// TestNamesOfRegistries: one that could be a folder of Docker Hub, or leads out of the directory, is
// none.
func TestNamesOfRegistries(t *testing.T) {
	for name, valid := range map[string]bool{
		"ghcr.io": true, "localhost": true, "localhost:5000": true, "registry:5000": true, "a-b.c:1": true,
		"library": false, "..": false, "a..b": false, "../x.y": false, "a/b.c": false, "GHCR.io": false, "": false, ".io": false, "x.": false, "x.y:": false, "x.y:a": false, "x y.z": false, "x.y\n": false,
	} {
		if ValidRegistry(name) != valid {
			t.Errorf("%q: %v, want %v", name, !valid, valid)
		}
	}
}

// TestContainerdLeavesDockersFiles: Docker's directory is one of those that containerd reads. A registry
// that has a directory there keeps it, and an undo leaves what is Docker's.
func TestContainerdLeavesDockersFiles(t *testing.T) {
	own, dockers := t.TempDir(), t.TempDir()
	writeFile(t, fileName(dockers, "ghcr.io"), hostsMark+"old")
	s := &Setup{Mirror: loopback, Registries: three}
	c := containerd{paths: []string{own, dockers}}
	var plan setupPlan
	if err := s.planContainerd(&plan, c, dockers, false); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, c := range plan.changes {
		files = append(files, c.file.path)
	}
	if want := []string{fileName(own, hubName), fileName(own, "registry.lan:5000"), fileName(dockers, "ghcr.io")}; !slices.Equal(files, want) {
		t.Errorf("%v, want %v", files, want)
	}
	writeFile(t, fileName(own, hubName), hostsMark)
	plan = setupPlan{}
	if err := s.planContainerd(&plan, c, dockers, true); err != nil || len(plan.changes) != 1 || plan.changes[0].file.path != fileName(own, hubName) {
		t.Errorf("%v %+v", err, plan.changes)
	}
}

// TestContainerdsConfiguration: what "containerd config dump" prints of each version.
func TestContainerdsConfiguration(t *testing.T) {
	for _, test := range []struct {
		name, version, dump string
		cri, legacy         bool
		paths               string
	}{
		{"1.6", "1.6.20~ds1", `
disabled_plugins = []
version = 2
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = ""
[plugins."io.containerd.grpc.v1.cri".registry.mirrors]
`, true, false, ""},
		{"1.6 with a path", "1.6.20~ds1", `
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/a"
`, true, false, "/a"},
		{"1.7 with mirrors", "1.7.28", `
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://x"]
`, true, true, ""},
		{"2.1", "2.1.5", "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = ''\n", true, false, ""},
		{"2.4", "2.4.2+unknown", "version = 4\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = ''\n", true, false, defaultConfigPath},
		{"2.4 with paths", "2.4.2", "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/a:/b'\n", true, false, "/a:/b"},
		{"without CRI", "1.7.28", `disabled_plugins = ["cri"]`, false, false, ""},
	} {
		c := containerd{version: test.version, release: releaseOf(test.version)}
		if err := c.readConfig([]byte(test.dump)); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if got := strings.Join(c.paths, string(os.PathListSeparator)); got != test.paths || c.cri != test.cri || c.legacy != test.legacy {
			t.Errorf("%s: paths %q, want %q; cri %v, legacy %v", test.name, got, test.paths, c.cri, c.legacy)
		}
	}
	for line, want := range map[string]string{
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3": "1.6.20~ds1",
		"containerd github.com/containerd/containerd/v2 v2.4.2 abcdef":                "2.4.2",
	} {
		if got := versionIn(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
