package dockerhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

const loopback = "http://127.0.0.1:5000"

// newSetup returns a Setup for the daemon and a mirror.
func newSetup(d *fakeDaemon, mirror string) (*Setup, *bytes.Buffer) {
	out := new(bytes.Buffer)
	return &Setup{Engine: d.host, Mirror: mirror, Out: out, Paths: SetupPaths{Certs: d.certs}}, out
}

// mirrorsOf are the mirrors that the engine says it has.
func mirrorsOf(t *testing.T, d *fakeDaemon) string {
	t.Helper()
	c, err := d.host.Connect("doctor")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	info, err := c.Info(t.Context(), client.InfoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(info.Info.RegistryConfig.Mirrors, " ")
}

// TestSetupFitsTheEngine: setup writes the files that the engine's version and store need,
// and the engine takes them.
func TestSetupFitsTheEngine(t *testing.T) {
	for _, test := range []struct {
		name, version, mirror string
		containerd            bool
		mirrors, hosts        bool
	}{
		{"graphdriver 20.10", "20.10.24+dfsg1", loopback, false, true, false},
		{"graphdriver 20.10, another host", "20.10.24", "http://10.0.0.1:5000", false, true, false},
		{"graphdriver 28: its BuildKit needs hosts.toml", "28.5.2", loopback, false, true, true},
		{"graphdriver 28, another host", "28.5.2", "http://10.0.0.1:5000", false, true, true},
		{"containerd 27 knows no hosts.toml", "27.5.1", loopback, true, true, false},
		{"containerd 29", "29.7.2", loopback, true, false, true},
		{"containerd 29, IPv6 loopback", "29.7.2", "http://[::1]:5000", true, false, true},
		{"containerd 29, another host", "29.7.2", "https://cache.example:5000", true, true, true},
		{"containerd 29, a path", "29.7.2", "https://cache.example/hub", true, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDaemon(t, "", daemonOptions{Version: test.version, Containerd: test.containerd})
			s, out := newSetup(d, test.mirror)
			if err := s.Run(t.Context(), false, false); err != nil {
				t.Fatal(err)
			}
			if contentOf(t, d.config) != "" {
				t.Error("it wrote without --apply")
			}
			if err := s.Run(t.Context(), true, false); err != nil {
				t.Fatal(err)
			}
			hosts := filepath.Join(d.certs, "docker.io", "hosts.toml")
			if got := strings.Contains(contentOf(t, d.config), test.mirror); got != test.mirrors {
				t.Errorf("registry-mirrors has it: %v, want %v\n%s", got, test.mirrors, contentOf(t, d.config))
			}
			if got := strings.Contains(mirrorsOf(t, d), test.mirror); got != test.mirrors {
				t.Errorf("the engine has it: %v, want %v", got, test.mirrors)
			}
			if got := strings.Contains(contentOf(t, hosts), test.mirror); got != test.hosts {
				t.Errorf("hosts.toml has it: %v, want %v\n%s", got, test.hosts, contentOf(t, hosts))
			}
			out.Reset()
			if err := s.Run(t.Context(), true, false); err != nil || !strings.Contains(out.String(), "Nothing to change") {
				t.Errorf("the second time: %v\n%s", err, out)
			}
		})
	}
}

// TestSetupMergesAndUndoes: daemon.json keeps everything else, --undo shows how the mirror is
// taken out, and with --apply takes it out.
func TestSetupMergesAndUndoes(t *testing.T) {
	before := `{"data-root": "/1e3", "registry-mirrors": ["https://other.example"], "log-opts": {"max-size": "10m"}}`
	with := strings.Replace(before, `["https`, `["http://127.0.0.1:5000", "https`, 1)
	d := startDaemon(t, before, daemonOptions{Version: "28.5.2"})
	hosts := filepath.Join(d.certs, "docker.io", "hosts.toml")
	real := filepath.Join(d.dir, "real.json")
	if err := errors.Join(os.Rename(d.config, real), os.Symlink(real, d.config), os.Chmod(real, 0o600)); err != nil {
		t.Fatal(err)
	}
	s, out := newSetup(d, loopback)
	if err := s.Run(t.Context(), true, false); err != nil {
		t.Fatal(err)
	}
	if got := contentOf(t, real); got != with {
		t.Errorf("daemon.json is\n%s\nwant\n%s", got, with)
	}
	if to, err := os.Readlink(d.config); to != real || err != nil {
		t.Errorf("the symlink is %q, %v", to, err)
	}
	if kept := contentOf(t, real+".before-hubcache"); kept != before {
		t.Errorf("the backup is %q", kept)
	}
	out.Reset()
	if err := s.Run(t.Context(), false, true); err != nil || !strings.Contains(out.String(), "Nothing was done; --undo --apply does it") ||
		!strings.Contains(out.String(), "take "+loopback+" out") || contentOf(t, real) != with || contentOf(t, hosts) == "" {
		t.Errorf("--undo: %v\n%s%s", err, out, contentOf(t, real))
	}
	if err := s.Run(t.Context(), true, true); err != nil {
		t.Fatal(err)
	}
	if got := contentOf(t, real); got != before {
		t.Errorf("after --undo --apply: %s", got)
	}
	if got := mirrorsOf(t, d); got != "https://other.example/" {
		t.Errorf("the engine has %s", got)
	}
	if names, err := os.ReadDir(filepath.Dir(hosts)); err != nil || len(names) != 0 {
		t.Errorf("beside hosts.toml there is %v, %v", names, err)
	}
}

// TestUndoWorksWithoutAnEngine: also for an entry with which no engine starts.
func TestUndoWorksWithoutAnEngine(t *testing.T) {
	for _, mirror := range []string{loopback, "127.0.0.1:6000", "https://u:p@cache.lan", "http://cache.lan/v2"} {
		config := filepath.Join(t.TempDir(), "daemon.json")
		writeFile(t, config, fmt.Sprintf(`{"registry-mirrors": [%q], "debug": true}`, mirror))
		out := new(bytes.Buffer)
		s := Setup{Engine: Location{Host: "unix:///does/not/exist"}, Mirror: mirror, Out: out, Paths: SetupPaths{DaemonJSON: config, Certs: t.TempDir()}}
		if err := s.Run(t.Context(), true, true); err != nil || contentOf(t, config) != `{"registry-mirrors": [], "debug": true}` {
			t.Errorf("%s: %v\n%s%s", mirror, err, out, contentOf(t, config))
		}
		if strings.Contains(out.String(), "u:p@") {
			t.Errorf("the password is in the output:\n%s", out)
		}
	}
}

// TestUndoWithoutAnEngineLeavesOtherMirrors: which version the engine has isn't known then, and a
// mirror with a path is refused only by old ones.
func TestUndoWithoutAnEngineLeavesOtherMirrors(t *testing.T) {
	config := filepath.Join(t.TempDir(), "daemon.json")
	writeFile(t, config, `{"registry-mirrors": ["http://127.0.0.1:5000", "https://other.example/hub"]}`)
	out := new(bytes.Buffer)
	s := Setup{Engine: Location{Host: "unix:///does/not/exist"}, Mirror: loopback, Out: out, Paths: SetupPaths{DaemonJSON: config, Certs: t.TempDir()}}
	if err := s.Run(t.Context(), true, true); err != nil || contentOf(t, config) != `{"registry-mirrors": ["https://other.example/hub"]}` {
		t.Errorf("%v\n%s%s", err, out, contentOf(t, config))
	}
}

// TestSetupWritesNoMirrorThatDockerRefuses: such a URL is wrong usage, and nothing is written.
func TestSetupWritesNoMirrorThatDockerRefuses(t *testing.T) {
	const before = `{"debug": true}`
	d := startDaemon(t, before, daemonOptions{})
	for _, mirror := range []string{"127.0.0.1:6000", "cache.lan:5000", "http://cache.lan:5000/v2/", "http://cache.lan/hub", "https://u:p@cache.lan"} {
		s, _ := newSetup(d, strings.TrimRight(mirror, "/"))
		err := s.Run(t.Context(), true, false)
		if _, ok := errors.AsType[settings.UsageError](err); !ok || strings.Contains(err.Error(), "u:p@") {
			t.Errorf("%s: %v", mirror, err)
		}
		if got := contentOf(t, d.config); got != before {
			t.Errorf("%s: the file has %s", mirror, got)
		}
	}
}

// TestSetupRefuses: a file that can't be merged, or with which the engine doesn't start, is
// named with the reason, and stays as it is.
func TestSetupRefuses(t *testing.T) {
	for _, test := range []struct{ name, body, says string }{
		{"broken", `{"a": `, "can't be changed"},
		{"a comment", "{\n  // mirrors\n  \"debug\": true\n}", "invalid character '/'"},
		{"an array", `[]`, "not a JSON object"},
		{"mirrors no list", `{"registry-mirrors": "x"}`, "not a list of strings"},
		{"a mirror that is no string", `{"registry-mirrors": [1]}`, "not a list of strings"},
		{"a key twice", `{"debug":true,"debug":false}`, "twice"},
		{"two objects", `{} {}`, "follows"},
		{"a brace too many", `{}}`, "follows"},
		{"a byte order mark", "\ufeff{}", "invalid character"},
		{"an empty mirror", `{"registry-mirrors": [""]}`, `"" (it is empty)`},
		{"a null mirror", `{"registry-mirrors": [null]}`, `"" (it is empty)`},
		{"a mirror without a scheme", `{"registry-mirrors": ["https://good.lan", "cache.lan:5000"]}`, `"cache.lan:5000" (it has no scheme`},
		{"a path on 20.10", `{"registry-mirrors": ["http://cache.lan/hub"]}`, "path /hub"},
		{"a password", `{"registry-mirrors": ["https://u:p@cache.lan"]}`, "https://…@cache.lan"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDaemon(t, "", daemonOptions{})
			writeFile(t, d.config, test.body) // a running engine would not have it
			for _, undo := range []bool{false, true} {
				s, _ := newSetup(d, loopback)
				if err := s.Run(t.Context(), true, undo); err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "u:p@") {
					t.Errorf("undo %v: %v, want %q", undo, err, test.says)
				}
			}
			if got := contentOf(t, d.config); got != test.body {
				t.Errorf("it is %q now", got)
			}
		})
	}
	t.Run("somebody's hosts.toml", func(t *testing.T) {
		d := startDaemon(t, "", daemonOptions{Version: "28.5.2"})
		path := filepath.Join(d.certs, "docker.io", "hosts.toml")
		writeFile(t, path, "mine")
		s, _ := newSetup(d, loopback)
		if err := s.Run(t.Context(), true, false); err == nil || contentOf(t, path) != "mine" || contentOf(t, d.config) != "" {
			t.Errorf("%v; hosts.toml is %q, daemon.json %q", err, contentOf(t, path), contentOf(t, d.config))
		}
	})
}

// TestSetupPutsTheOldFilesBack: when the engine doesn't take what was written, all files are
// as before, the engine is told, and the reason is said.
func TestSetupPutsTheOldFilesBack(t *testing.T) {
	for _, test := range []struct {
		name, before, after string // after: what the file is when setup begins
		options             daemonOptions
		undo                bool
	}{
		{"the engine is deaf", `{"debug": true}`, `{"debug": true}`, daemonOptions{Version: "28.5.2", Deaf: true}, false},
		{"no file before", "", "", daemonOptions{Version: "28.5.2", Deaf: true}, false},
		{"the engine refuses another key", `{}`, `{"dbug": true}`, daemonOptions{Version: "28.5.2"}, false},
		{"it has the mirror from a file that it has forgotten", `{"registry-mirrors": ["` + loopback + `"]}`, `{"dbug": true}`, daemonOptions{Version: "28.5.2"}, false},
		{"undo", `{"registry-mirrors": ["` + loopback + `"]}`, `{"registry-mirrors": ["` + loopback + `"], "dbug": 1}`, daemonOptions{Version: "28.5.2"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t, test.before, test.options)
			if test.after != "" {
				writeFile(t, d.config, test.after)
			}
			hosts := filepath.Join(d.certs, "docker.io", "hosts.toml")
			if test.undo {
				writeFile(t, hosts, hostsMark)
			}
			hadHosts := contentOf(t, hosts)
			s, _ := newSetup(d, loopback)
			s.Patience = 500 * time.Millisecond
			err := s.Run(t.Context(), true, test.undo)
			if err == nil || !strings.Contains(err.Error(), "didn't take the new configuration") || !strings.Contains(err.Error(), "put back") {
				t.Errorf("%v", err)
			}
			if got := contentOf(t, d.config); got != test.after {
				t.Errorf("daemon.json is %q, want %q", got, test.after)
			}
			if got := contentOf(t, hosts); got != hadHosts {
				t.Errorf("hosts.toml is %q, want %q", got, hadHosts)
			}
			if names, _ := filepath.Glob(filepath.Join(filepath.Dir(d.config), "*hubcache*")); len(names) > 0 {
				t.Errorf("left over: %v", names)
			}
		})
	}
}

// TestFileThatTheEngineHasNotRead: a file that is right already is of no use until the engine
// has read it.
func TestFileThatTheEngineHasNotRead(t *testing.T) {
	const with, without = `{"registry-mirrors": ["` + loopback + `"]}`, `{"registry-mirrors": []}`
	for _, test := range []struct {
		before, now, after, mirrors string
		undo                        bool
	}{{without, with, with, loopback + "/", false}, {with, without, without, "", true}, {with, `{"debug": true}`, `{"debug": true,"registry-mirrors": []}`, "", true}} {
		d := startDaemon(t, test.before, daemonOptions{})
		writeFile(t, d.config, test.now)
		s, out := newSetup(d, loopback)
		if err := s.Run(t.Context(), false, test.undo); err != nil || test.now == test.after && !strings.Contains(out.String(), "hasn't read it yet") || mirrorsOf(t, d) == test.mirrors {
			t.Errorf("without --apply: %v\n%s", err, out)
		}
		if err := s.Run(t.Context(), true, test.undo); err != nil || mirrorsOf(t, d) != test.mirrors || contentOf(t, d.config) != test.after {
			t.Errorf("%v; the engine has %q, want %q; the file has %s", err, mirrorsOf(t, d), test.mirrors, contentOf(t, d.config))
		}
	}
}

// TestInterruptedSetupPutsTheOldFilesBack: Ctrl-C while the engine is waited for.
func TestInterruptedSetupPutsTheOldFilesBack(t *testing.T) {
	d := startDaemon(t, `{}`, daemonOptions{Deaf: true})
	s, _ := newSetup(d, loopback)
	s.Patience = 2 * time.Second
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for !strings.Contains(contentOf(t, d.config), loopback) {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if err := s.Run(ctx, true, false); err == nil || !strings.Contains(err.Error(), "interrupted") || contentOf(t, d.config) != `{}` {
		t.Errorf("%v; daemon.json is %s", err, contentOf(t, d.config))
	}
}

// TestLateEngineGetsItsMirrorsBack: the engine takes the new file after setup has given up, and keeps
// its mirrors when it reads the old file, which has none. A setup that is interrupted meanwhile waits
// for that too.
func TestLateEngineGetsItsMirrorsBack(t *testing.T) {
	const ours = `{"registry-mirrors": ["` + loopback + `"]}`
	for _, test := range []struct {
		name, before, after, mirrors string
		undo, interrupted            bool
	}{
		{"late", `{"debug": true}`, `{"debug": true}`, "", false, false},
		{"no file", "", "", "", false, false},
		{"interrupted", `{}`, `{}`, "", false, true},
		{"with another mirror", `{"registry-mirrors": ["https://other.example"]}`, `{"registry-mirrors": ["https://other.example"]}`, "https://other.example/", false, false},
		{"with one that the file has no more", `{"registry-mirrors": ["https://other.example"]}`, `{}`, "https://other.example/", false, true},
		{"undo", ours, ours, loopback + "/", true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t, test.before, daemonOptions{Late: time.Second})
			if test.after != "" {
				writeFile(t, d.config, test.after)
			}
			s, _ := newSetup(d, loopback)
			s.Patience = 700 * time.Millisecond
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.interrupted {
				s.Patience = 5 * time.Second
				go func() {
					for contentOf(t, d.config) == test.after {
						time.Sleep(time.Millisecond)
					}
					time.Sleep(100 * time.Millisecond) // the engine has read it
					cancel()
				}()
			}
			err := s.Run(ctx, true, test.undo)
			if err == nil || !strings.Contains(err.Error(), "put back, and the engine was told") {
				t.Errorf("%v", err)
			}
			time.Sleep(2500 * time.Millisecond) // until the engine has done all that it was told
			if got := mirrorsOf(t, d); got != test.mirrors {
				t.Errorf("the engine has %q, want %q", got, test.mirrors)
			}
			if got := contentOf(t, d.config); got != test.after {
				t.Errorf("daemon.json is %q, want %q", got, test.after)
			}
			if names, _ := filepath.Glob(filepath.Join(filepath.Dir(d.config), "*hubcache*")); len(names) > 0 {
				t.Errorf("left over: %v", names)
			}
		})
	}
}

// TestMirrorsOnTheCommandLine: ours is success, and another's is never doubled in the file,
// since the engine doesn't start with both.
func TestMirrorsOnTheCommandLine(t *testing.T) {
	for _, test := range []struct {
		name, flag string
		undo       bool
		fails      string
		says       string
	}{
		{"ours", "--registry-mirror=" + loopback, false, "", "has http://127.0.0.1:5000 already, by --registry-mirror"},
		{"ours with a slash", "--registry-mirror=" + loopback + "/", false, "", "already"},
		{"another", "--registry-mirror=https://other.example", false, "add --registry-mirror=http://127.0.0.1:5000 there", ""},
		{"ours, to be taken out", "--registry-mirror=" + loopback, true, "", "take --registry-mirror off its command line"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDaemon(t, `{"debug": true}`, daemonOptions{Args: []string{test.flag}})
			s, out := newSetup(d, loopback)
			err := s.Run(t.Context(), true, test.undo)
			if test.fails == "" && err != nil || test.fails != "" && (err == nil || !strings.Contains(err.Error(), test.fails)) {
				t.Errorf("%v, want %q", err, test.fails)
			}
			if !strings.Contains(out.String(), test.says) {
				t.Errorf("it doesn't say %q:\n%s", test.says, out)
			}
			if got := contentOf(t, d.config); got != `{"debug": true}` {
				t.Errorf("daemon.json is %s", got)
			}
		})
	}
}

// TestEnginesThatKeepTheirConfigurationElsewhere: what an engine says of itself decides.
// Without --apply the instruction is the output, with it it is the error, and no file is
// written.
func TestEnginesThatKeepTheirConfigurationElsewhere(t *testing.T) {
	for _, test := range []struct {
		name    string
		options daemonOptions
		says    string
	}{
		{"Podman", daemonOptions{Version: "4.3.1", Component: "Podman Engine"}, "Podman 4.3.1: it reads its mirrors from /etc/containers/registries.conf"},
		{"NixOS", daemonOptions{Info: system.Info{OperatingSystem: "NixOS 25.05 (Warbler)"}}, "services.hubcache.registryMirror"},
		{"Docker Desktop", daemonOptions{Info: system.Info{OperatingSystem: "Docker Desktop"}}, "under Docker Engine there add"},
		{"a proxy of the socket", daemonOptions{Parent: "proxy"}, "is proxy and not dockerd. Usually that is /etc/docker/daemon.json"},
		{"a proxy of a snap's socket", daemonOptions{Parent: "proxy", Info: system.Info{DockerRootDir: "/var/snap/docker/common/var-lib-docker"}}, "/var/snap/docker/current/config/daemon.json"},
		{"a proxy of a rootless socket", daemonOptions{Parent: "proxy", Info: system.Info{SecurityOptions: []string{"name=rootless"}}}, "~/.config/docker/daemon.json"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDaemon(t, `{}`, test.options)
			s, out := newSetup(d, loopback)
			if err := s.Run(t.Context(), false, false); err != nil || !strings.Contains(strings.ToLower(out.String()), strings.ToLower(test.says)) {
				t.Errorf("%v\n%s\nwant %q", err, out, test.says)
			}
			if !strings.Contains(out.String(), "docker setup --for containerd, podman") {
				t.Error("it does not say what other clients need")
			}
			if err := s.Run(t.Context(), true, false); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("--apply: %v, want %q", err, test.says)
			}
			if contentOf(t, d.config) != `{}` {
				t.Errorf("daemon.json is %s", contentOf(t, d.config))
			}
		})
	}
}

// TestFileOfTheDaemonsProcess: --config-file of the daemon's command line is the file, also a
// relative one; a rootless daemon's is in its user's home; one that the user names and the
// daemon doesn't read is refused.
func TestFileOfTheDaemonsProcess(t *testing.T) {
	t.Run("rootless", func(t *testing.T) {
		for _, variable := range []string{"HOME", "XDG_CONFIG_HOME"} {
			home := t.TempDir()
			d := startDaemon(t, "", daemonOptions{NoFile: true, Info: system.Info{SecurityOptions: []string{"name=rootless"}},
				Env: []string{"HOME=/none", "XDG_CONFIG_HOME=", variable + "=" + home}})
			want := filepath.Join(home, ".config/docker/daemon.json")
			if variable == "XDG_CONFIG_HOME" {
				want = filepath.Join(home, "docker/daemon.json")
			}
			s, out := newSetup(d, loopback)
			if err := s.Run(t.Context(), false, false); err != nil || !strings.HasPrefix(out.String(), want+":") {
				t.Errorf("%v\n%s", err, out)
			}
		}
	})
	t.Run("snap", func(t *testing.T) {
		s := Setup{}
		for arg, want := range map[string]string{
			"--debug": "/var/snap/docker/current/config/daemon.json", "--config-file=/var/snap/docker/2932/config/daemon.json": "/var/snap/docker/2932/config/daemon.json",
		} {
			f := daemonFiles{process: &daemonProcess{pid: os.Getpid(), args: []string{"dockerd", arg}}}
			err := s.fillPaths(&f, engineFacts{root: "/var/snap/docker/common/var-lib-docker"})
			if err != nil || f.config != want || f.certs != "/var/snap/docker/current/etc/docker/certs.d" {
				t.Errorf("%s: %+v, %v", arg, f, err)
			}
		}
	})
	t.Run("rootless, of another user", func(t *testing.T) {
		p := daemonProcess{uid: 4242}
		if err := p.checkUser(engineFacts{rootless: true}, 0); err == nil || !strings.Contains(err.Error(), "user 4242: run this command as that user") {
			t.Error(err)
		}
		if err := p.checkUser(engineFacts{}, 0); err != nil {
			t.Errorf("not rootless: %v", err)
		}
	})
	t.Run("named and not the daemon's", func(t *testing.T) {
		d := startDaemon(t, `{}`, daemonOptions{})
		s, _ := newSetup(d, loopback)
		s.Paths.DaemonJSON = filepath.Join(d.dir, "other.json")
		if err := s.Run(t.Context(), true, false); err == nil || !strings.Contains(err.Error(), "reads "+d.config+" and not ") {
			t.Error(err)
		}
		if contentOf(t, s.Paths.DaemonJSON) != "" {
			t.Error("it was written")
		}
	})
	t.Run("flags", func(t *testing.T) {
		p := daemonProcess{pid: os.Getpid(), args: []string{"dockerd", "--config-file", "a", "--registry-mirror=b", "--config-file=c.json", "--registry-mirror", "d"}}
		if got := p.flag("--config-file"); strings.Join(got, " ") != "a c.json" {
			t.Errorf("--config-file is %q", got)
		}
		if got := p.flag("--registry-mirror"); strings.Join(got, " ") != "b d" {
			t.Errorf("--registry-mirror is %q", got)
		}
		dir, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.path("c.json"); got != filepath.Join(dir, "c.json") || err != nil {
			t.Errorf("the relative path is %q, %v", got, err)
		}
	})
}

// TestDaemonBehindSystemd: if systemd has made the socket, the pid file says which process is
// the daemon, and it counts only if its data root is the engine's.
func TestDaemonBehindSystemd(t *testing.T) {
	root := t.TempDir()
	d := startDaemon(t, fmt.Sprintf(`{"data-root": %q}`, root), daemonOptions{Parent: "systemd", Info: system.Info{DockerRootDir: root}})
	pidFile := filepath.Join(d.dir, "pid")
	for range 6000 {
		if contentOf(t, pidFile) != "" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	s, _ := newSetup(d, loopback)
	s.Paths.PIDFile = pidFile
	if err := s.Run(t.Context(), true, false); err != nil || mirrorsOf(t, d) != loopback+"/" {
		t.Errorf("%v; the engine has %s", err, mirrorsOf(t, d))
	}
	for path, want := range map[string]bool{root: true, filepath.Join(root, "100000.100000"): true, root + "2": false, "/var/lib/docker": false} {
		p, err := daemonOfFile(pidFile)
		if err != nil {
			t.Fatal(err)
		}
		p.guessed = true
		if err := s.fillPaths(&daemonFiles{process: &p}, engineFacts{root: path}); (err == nil) != want {
			t.Errorf("the engine's data root is %s: %v", path, err)
		}
	}
	writeFile(t, pidFile, fmt.Sprint(os.Getpid()))
	if err := s.Run(t.Context(), true, true); err == nil || !strings.Contains(err.Error(), "and not dockerd") {
		t.Errorf("another process in the pid file: %v", err)
	}
}

// TestProxyThatDoesNotKnowTheMirror: a daemon that would ask the mirror through its proxy is
// said, unless NO_PROXY or a loopback address keeps it from that.
func TestProxyThatDoesNotKnowTheMirror(t *testing.T) {
	proxied := func(noProxy string) system.Info {
		return system.Info{HTTPProxy: "http://xxxxx:xxxxx@proxy.lan:3128", HTTPSProxy: "http://proxy.lan:3129", NoProxy: noProxy}
	}
	for _, test := range []struct {
		mirror, noProxy, says string
	}{
		{"http://10.0.0.1:5000", "", "proxy.lan:3128; if the proxy can't reach the cache, add 10.0.0.1 to the daemon's NO_PROXY"},
		{"https://cache.lan", "other.lan", "proxy.lan:3129"},
		{"http://10.0.0.1:5000", "10.0.0.0/8", ""},
		{"https://cache.lan", "localhost,.lan", ""},
		{"http://127.0.0.1:5000", "", ""},
		{"http://localhost:5000", "", ""},
	} {
		d := startDaemon(t, "", daemonOptions{Info: proxied(test.noProxy)})
		s, out := newSetup(d, test.mirror)
		if err := s.Run(t.Context(), false, false); err != nil {
			t.Error(err)
		}
		if got := strings.Contains(out.String(), "through its proxy"); got != (test.says != "") || !strings.Contains(out.String(), test.says) {
			t.Errorf("%s with NO_PROXY %q: want %q\n%s", test.mirror, test.noProxy, test.says, out)
		}
	}
}

// TestDoctorReadsTheDaemonsOwnFiles: the hosts.toml of a rootless daemon is in its user's home;
// a proxy between the engine and the cache is said.
func TestDoctorReadsTheDaemonsOwnFiles(t *testing.T) {
	home := t.TempDir()
	d := startDaemon(t, "", daemonOptions{NoFile: true, Version: "29.7.2", Containerd: true, Env: []string{"XDG_CONFIG_HOME=" + home},
		Info: system.Info{SecurityOptions: []string{"name=rootless"}, HTTPProxy: "http://proxy.lan:3128"}})
	set := settings.Default()
	set.Docker.Host = settings.Text(d.host.Host)
	set.Listen = []string{"10.0.0.1:5000"}
	writeFile(t, filepath.Join(home, "docker/certs.d/docker.io/hosts.toml"), (hostsFile{registry: NewRegistry(hubName, ""), mirrors: []string{"http://10.0.0.1:5000"}}).text())
	doctor := Doctor{Settings: set, Find: adminclient.Finder{Given: "unix:" + filepath.Join(home, "none")}}
	findings, err := doctor.Examine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Finding{
		{Check: "docker", Status: StatusOK, Detail: "has the mirror http://10.0.0.1:5000"},
		{Check: "proxy", Status: StatusNote, Detail: "through its proxy http://proxy.lan:3128"},
	} {
		if !slices.ContainsFunc(findings, func(f Finding) bool {
			return f.Check == want.Check && f.Status == want.Status && strings.Contains(f.Detail, want.Detail)
		}) {
			t.Errorf("no %+v in %+v", want, findings)
		}
	}
}
