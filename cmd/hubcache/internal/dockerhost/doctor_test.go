package dockerhost

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// TestOldFailuresAreNotes: a failure of the CDN stands until somebody pulls a layer again. After a
// while it is no news of now.
func TestOldFailuresAreNotes(t *testing.T) {
	for age, want := range map[time.Duration]string{time.Minute: StatusBroken, time.Hour: StatusNote} {
		d := Doctor{Settings: settings.Default()}
		d.running = d.Settings
		d.checkUpstream(t.Context(), admin.Upstream{Registry: "docker.io", State: "ok", Failure: &admin.Failure{Kind: "dns", Host: "cdn.hub.test", At: time.Now().Add(-age)}})
		at := len(d.findings) - 1
		if f := d.findings[at]; f.Status != want || !strings.Contains(f.Detail, "the name cdn.hub.test can't be resolved") {
			t.Errorf("%s ago: %+v", age, f)
		}
	}
}

// TestDoctorSeesAnExposedCredential: the copy that systemd makes is closed; the file that it is made
// from may be open.
func TestDoctorSeesAnExposedCredential(t *testing.T) {
	for path, want := range map[string]bool{"etc/credstore/public": true, "etc/credstore/closed": false} {
		root := installed(t, map[string]string{path: "x", "etc/systemd/system/hubcache.service.d/x.conf": "[Service]\nLoadCredential=" + filepath.Base(path) + "\n"})
		d := Doctor{Settings: settings.Default(), Root: root}
		d.running = d.Settings
		d.running.Upstream.PasswordFile = settings.Text(filepath.Base(path))
		d.checkToken(admin.Upstream{Registry: hubName, Credential: admin.Credential{State: "accepted"}})
		found := false
		for _, f := range d.findings {
			found = found || f.Check == "password file" && strings.Contains(f.Detail, filepath.Join(root, path))
		}
		if found != want {
			t.Errorf("%s: %+v", path, d.findings)
		}
	}
}

// TestRepositoryOf: an image's name is completed as Docker does.
func TestRepositoryOf(t *testing.T) {
	for image, want := range map[string]string{
		"redis": "library/redis", "redis:7": "library/redis", "docker.io/redis:7": "library/redis", "index.docker.io/library/redis": "library/redis",
		"me/app@sha256:00": "me/app", "me/app:1@sha256:00": "me/app", "hello-world:latest": "library/hello-world",
	} {
		if got := repositoryOf(image); got != want {
			t.Errorf("%s: %s", image, got)
		}
	}
}

// TestDoctorReadsPodmansMirrors: Podman's mirrors are in its own files.
func TestDoctorReadsPodmansMirrors(t *testing.T) {
	const hub = "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n"
	for content, want := range map[string]string{
		"": StatusBroken,
		hub + "[[registry.mirror]]\nlocation = \"127.0.0.1:5000\"\ninsecure = true\n":                                 StatusOK,
		hub + "[[registry.mirror]]\nlocation = \"127.0.0.1:5001\"\n":                                                  StatusBroken,
		hub + "# location = \"127.0.0.1:5000\"\n":                                                                     StatusBroken,
		"[[registry]]\nlocation = \"quay.io\"\n[[registry.mirror]]\nlocation = \"127.0.0.1:5000\"\n":                  StatusBroken,
		"[[registry]]\nlocation = \"docker.io\"\nmirror = [{location = \"127.0.0.1:5000\"}]\n":                        StatusOK,
		hub + "[[registry.mirror]]\nlocation = \"127.0.0.1:1\"\n[[registry.mirror]]\nlocation = \"127.0.0.1:5000\"\n": StatusOK,
	} {
		d := Doctor{Settings: settings.Default(), Root: t.TempDir()}
		d.running = d.Settings
		writeFile(t, filepath.Join(d.Root, "etc/containers/registries.conf.d/hubcache.conf"), content)
		if sure := d.checkMirror(&engine{facts: engineFacts{version: "4.3.1", podman: true}}); !sure || d.findings[0].Status != want {
			t.Errorf("%q: %+v", content, d.findings)
		}
	}
}

// TestDoctorReadsPodmansOtherRegistries: Podman asks for them by the path.
func TestDoctorReadsPodmansOtherRegistries(t *testing.T) {
	d := Doctor{Settings: settings.Default(), Root: t.TempDir()}
	d.running = d.Settings
	d.running.Registries = settings.Registries{"ghcr.io": {}, "quay.io": {}}
	writeFile(t, filepath.Join(d.Root, "etc/containers/registries.conf.d/hubcache.conf"),
		registriesConf("http://127.0.0.1:5000", []Registry{NewRegistry(hubName, ""), NewRegistry("ghcr.io", "")}))
	d.checkMirror(&engine{facts: engineFacts{version: "4.3.1", podman: true}})
	want := map[string]string{"docker": StatusOK, "docker ghcr.io": StatusOK, "docker quay.io": StatusNote}
	for _, f := range d.findings {
		if want[f.Check] != f.Status {
			t.Errorf("%+v", f)
		}
		delete(want, f.Check)
	}
	if len(want) > 0 {
		t.Errorf("nothing about %v in %+v", want, d.findings)
	}
}

// TestDoctorDoesNotWaitForASilentEngine: one that takes the connection and says nothing is a finding.
func TestDoctorDoesNotWaitForASilentEngine(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket) // the kernel takes the connections, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	d := Doctor{Settings: settings.Default(), Host: "unix://" + socket, patience: 50 * time.Millisecond}
	d.running = d.Settings
	done := make(chan *engine, 1)
	go func() { done <- d.findEngine(t.Context()) }()
	select {
	case e := <-done:
		if e != nil || len(d.findings) != 1 || d.findings[0].Status != StatusBroken {
			t.Errorf("engine %v, findings %+v", e, d.findings)
		}
	case <-time.After(time.Minute):
		t.Fatal("doctor still waits")
	}
}
