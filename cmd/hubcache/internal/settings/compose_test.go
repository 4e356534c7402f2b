package settings

import (
	"path"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
)

// TestComposeFileOfThreeNodes: packaging/compose.scale-out.yaml is a compose file whose nodes start with
// their settings, share one bucket and one Redis of the file, and advertise themselves.
func TestComposeFileOfThreeNodes(t *testing.T) {
	options, err := cli.NewProjectOptions([]string{"../../../../packaging/compose.scale-out.yaml"}, cli.WithName("scale-out"))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes, caches := 0, map[string]bool{}
	for name, service := range project.Services {
		if !strings.HasPrefix(service.Image, "hubcache:") {
			continue
		}
		nodes++
		isolate(t)
		for key, value := range service.Environment {
			t.Setenv(key, *value)
		}
		l, err := (&Loader{}).Load()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s := l.Shared
		if !s.On() || string(s.Advertise) != "http://"+name+":5000" {
			t.Errorf("%s shares %+v", name, s)
		}
		bucket, port, _ := strings.Cut(strings.TrimPrefix(string(s.Bucket.Endpoint), "http://"), ":")
		redis, _, _ := strings.Cut(string(s.Lease.Redis), ":")
		if !strings.Contains(strings.Join(project.Services[bucket].Entrypoint, " "), ":"+port) || project.Services[redis].Name == "" {
			t.Errorf("%s has its bucket at %s and its Redis at %s, which the file doesn't start", name, s.Bucket.Endpoint, s.Lease.Redis)
		}
		for _, file := range []Text{s.Bucket.AccessKeyFile, s.Bucket.SecretKeyFile, s.Lease.PasswordFile} {
			if _, ok := project.Secrets[path.Base(string(file))]; !ok || path.Dir(string(file)) != "/run/secrets" {
				t.Errorf("%s reads %s, which is no secret of the file", name, file)
			}
		}
		caches[service.Volumes[0].Source] = true
	}
	if nodes != 3 || len(caches) != 3 {
		t.Errorf("%d nodes with %d caches", nodes, len(caches))
	}
}
