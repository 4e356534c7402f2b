package dockerhost

import (
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"
)

// TestFilesOfOtherClients: each client gets all registries that it can ask for, by the way in which it
// can: c/image by the path, which a name with a port can't be in, and the others by ?ns=.
func TestFilesOfOtherClients(t *testing.T) {
	s := &Setup{Mirror: "http://10.0.0.1:5000", Registries: three}
	file := func(client string) string {
		t.Helper()
		text, err := s.ClientFile(client)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}

	for _, client := range []string{"podman", "crio"} {
		var conf struct {
			Registry []struct {
				Prefix, Location string
				Mirror           []struct {
					Location string
					Insecure bool
				}
			}
		}
		if err := toml.Unmarshal([]byte(file(client)), &conf); err != nil {
			t.Fatalf("%v\n%s", err, file(client))
		}
		got := map[string]string{}
		for _, r := range conf.Registry {
			if r.Prefix != r.Location || len(r.Mirror) != 1 || !r.Mirror[0].Insecure {
				t.Errorf("%+v", r)
			}
			got[r.Prefix] = r.Mirror[0].Location
		}
		if len(got) != 2 || got[hubName] != "10.0.0.1:5000" || got["ghcr.io"] != "10.0.0.1:5000/ghcr.io" || !strings.Contains(file(client), "# Not through the cache: registry.lan:5000") {
			t.Errorf("%s", file(client))
		}
	}

	var k3s struct {
		Mirrors map[string]struct{ Endpoint []string }
	}
	if err := yaml.Unmarshal([]byte(file("k3s")), &k3s); err != nil {
		t.Fatal(err)
	}
	var bk struct {
		Registry map[string]struct {
			Mirrors []string
			HTTP    bool
		}
	}
	if err := toml.Unmarshal([]byte(file("buildkit")), &bk); err != nil {
		t.Fatal(err)
	}
	for _, r := range three {
		if got := k3s.Mirrors[r.Name].Endpoint; len(got) != 1 || got[0] != s.Mirror {
			t.Errorf("k3s: %s: %v", r.Name, got)
		}
		if got := bk.Registry[r.Name].Mirrors; len(got) != 1 || got[0] != "10.0.0.1:5000" {
			t.Errorf("BuildKit: %s: %v", r.Name, got)
		}
	}
	if !bk.Registry["10.0.0.1:5000"].HTTP {
		t.Error("BuildKit would ask by https")
	}

	s.Mirror = "https://cache.example"
	for _, client := range []string{"podman", "buildkit"} {
		if text := file(client); strings.Contains(text, "insecure") || strings.Contains(text, "http =") || !strings.Contains(text, `"cache.example"`) {
			t.Errorf("%s by https:\n%s", client, text)
		}
	}
	s.Mirror = "https://u:p@cache.example"
	if _, err := s.ClientFile("podman"); err == nil || strings.Contains(err.Error(), "u:p") {
		t.Errorf("a URL with a password: %v", err)
	}
}
