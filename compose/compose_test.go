package compose

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/template"
)

// folder writes files into a new folder.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, body := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// names returns the names of the images of compose.yml in a folder with these files, in order.
// Each Any is a *.
func names(t *testing.T, files map[string]string) []string {
	t.Helper()
	images, err := Images(t.Context(), filepath.Join(folder(t, files), "compose.yml"))
	if err != nil {
		t.Error(err)
	}
	var out []string
	for _, img := range images {
		out = append(out, strings.ReplaceAll(img.Name, Any, "*"))
	}
	slices.Sort(out)
	return out
}

func TestImagesOfAComposeFile(t *testing.T) {
	t.Setenv("HUBCACHE_TEST_ENV", "from-env")
	for _, test := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"services, merges and variables", map[string]string{
			".env": "DB_VERSION=16\nHUBCACHE_TEST_ENV=from-file\nEMPTY=\n",
			"compose.yml": `
x-common: &common
  image: redis:7-alpine
services:
  app: {image: "example/app:${HUBCACHE_TEST_ENV}"}
  cache: {<<: *common}
  db: {image: "postgres:${DB_VERSION:-12}"}
  built: {build: .}
  proxy: {image: "traefik:${UNSET:-v3}"}
  unset: {image: "example/$UNSET:1"}
  required: {image: "example/required:${UNSET:?set it}"}
  nested: {image: "nested:${UNSET:-a${DB_VERSION}-${OTHER_UNSET}}"}
  instead: {image: "instead:${DB_VERSION:+v16}${UNSET:+x}"}
  twice: {image: "${UNSET:-twice}:${UNSET}"}
  nothing: {image: "nothing:1${EMPTY}"}
`}, []string{"*:*", "*-built", "*_built", "example/*:1", "example/app:from-env", "example/required:*", "instead:v16*", "nested:a16-*", "nothing:1", "postgres:16", "redis:7-alpine", "traefik:v3", "twice:*"}[1:]},
		{"a built image without a name, which Compose names after the project", map[string]string{
			"compose.yml": "services: {db: {image: 'db:1'}, web: {build: .}, api: {build: {context: ./api}}, named: {image: 'named:1', build: .}}",
		}, []string{"*-api", "*-web", "*_api", "*_web", "db:1", "named:1"}},
		{"an image that is a variable", map[string]string{"compose.yml": "services: {web: {image: '${WEB_IMAGE}'}}"}, []string{"*"}},
		{"variables where a number or an address stands", map[string]string{"compose.yml": `
services:
  web:
    image: web:1
    ports: ["${PORT}:80", "${ADDRESS}:${PORT}:80", "${ADDRESS}:443:443/udp", {target: 80, published: "${PORT}"}]
    deploy: {replicas: "${REPLICAS}", resources: {limits: {memory: "${MEMORY}"}}}
    volumes: ["${DATA}:/data", "${VOLUME}"]
    healthcheck: {interval: "${INTERVAL}"}
    env_file: [missing.env]
    devices: ["${DEVICE}:/dev/x"]
`}, []string{"web:1"}},
		{"further documents", map[string]string{"compose.yml": `
services: {a: {image: "a:1"}, b: {image: "b:1"}}
---
services: {b: {image: "b:2"}, c: {image: "c:1"}}
`}, []string{"a:1", "b:2", "c:1"}},
		{"include, with variables of its own", map[string]string{
			"compose.yml":      "include: [part/compose.yml, {path: [other.yml, override.yml], env_file: other.env}]\nservices: {a: {image: 'a:1'}}",
			"part/.env":        "PART=7\n",
			"part/compose.yml": "include: [deeper.yml]\nservices: {b: {image: 'b:${PART}'}}",
			"part/deeper.yml":  "services: {c: {image: 'c:${PART:-1}'}}",
			"other.yml":        "services: {d: {image: 'd:${OTHER}'}, e: {image: 'e:1'}}",
			"override.yml":     "services: {e: {image: 'e:2'}}",
			"other.env":        "OTHER=3\n",
		}, []string{"a:1", "b:7", "c:7", "d:3", "e:2"}},
		{"extends, from another file too", map[string]string{
			"compose.yml": "services: {a: {extends: {file: base.yml, service: base}}, b: {extends: a, image: 'b:1'}, c: {extends: {service: a}}}",
			"base.yml":    "services: {base: {image: 'base:${BASE:-1}'}, unused: {image: 'unused:1'}}",
		}, []string{"b:1", "base:1", "base:1"}},
		{"profiles", map[string]string{"compose.yml": "services: {a: {image: 'a:1', profiles: [debug]}}"}, []string{"a:1"}},
		{"mounts, hooks and contexts of builds", map[string]string{"compose.yml": `
services:
  a:
    image: a:1
    volumes: [{type: image, source: "mounted:1", target: /m}, {type: volume, source: data, target: /d}]
    build: {context: ., additional_contexts: {base: "docker-image://base:1", dir: ./x}}
    pre_start: [{image: "hook:1", command: x}]
`}, []string{"a:1", "base:1", "hook:1", "mounted:1"}},
		{"digests and IDs", map[string]string{"compose.yml": `
services:
  a: {image: "nginx:1@sha256:0123456789012345678901234567890123456789012345678901234567890123"}
  b: {image: "sha256:0123456789012345678901234567890123456789012345678901234567890123"}
`}, []string{"nginx:1@sha256:0123456789012345678901234567890123456789012345678901234567890123", "sha256:0123456789012345678901234567890123456789012345678901234567890123"}},
		{"the project's name, which the one who deploys chooses", map[string]string{"compose.yml": "name: mine\nservices: {a: {image: '${COMPOSE_PROJECT_NAME}-web:1'}}"}, []string{"*-web:1"}},
		{"a file for docker stack deploy", map[string]string{"compose.yml": `
version: "3.8"
services: {a: {image: "a:1", environment: ["NODE={{.Node.Hostname}}", "X=$$Y"], deploy: {update_config: {order: start-first}}, configs: [{source: c, target: /c}]}}
configs: {c: {name: "c_${C_VERSION}", file: c.tmpl, template_driver: golang}}
`}, []string{"a:1"}},
		{"a value that is taken back", map[string]string{"compose.yml": `
services: {a: {image: "a:1", ports: ["80:80"]}, b: {image: "b:1"}}
---
services: {a: {ports: !reset []}, b: !override {image: "b:2"}}
`}, []string{"a:1", "b:2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := names(t, test.files); !slices.Equal(got, test.want) {
				t.Errorf("images %q\nwant   %q", got, test.want)
			}
		})
	}
}

// TestFilesThatCantBeUnderstoodAreErrors: no image that such a file may name is passed over.
func TestFilesThatCantBeUnderstoodAreErrors(t *testing.T) {
	for name, body := range map[string]string{
		"not YAML":                         "services: [",
		"a second document that isn't":     "services: {a: {image: 'a:1'}}\n---\nservices: [",
		"not a mapping":                    "- a",
		"services that are a list":         "services: [{image: 'a:1'}]",
		"services that are a text":         "services: x",
		"a service that is a text":         "services: {a: x, b: {image: 'b:1'}}",
		"a wrong variable":                 `services: {a: {image: "x:${"}}`,
		"a wrong variable in a default":    `services: {a: {image: "x:${A:-${}"}}`,
		"an image that is a number":        "services: {a: {image: 5}}",
		"an image that is a list":          "services: {a: {image: [x]}}",
		"a name that is not valid":         "services: {a: {image: 'Not Valid'}}",
		"no image":                         "services: {a: {build: .}}",
		"no service":                       "volumes: {x: {}}",
		"nothing":                          "",
		"an included file that is gone":    "include: [gone.yml]\nservices: {a: {image: 'a:1'}}",
		"an included file of a variable":   "include: ['${PART}.yml']\nservices: {a: {image: 'a:1'}}",
		"an included file from a server":   "include: ['oci://registry.example/stack:1']\nservices: {a: {image: 'a:1'}}",
		"an include that isn't a list":     "include: part.yml\nservices: {a: {image: 'a:1'}}",
		"a cycle":                          "include: [compose.yml]\nservices: {a: {image: 'a:1'}}",
		"extends from a file that is gone": "services: {a: {extends: {file: gone.yml, service: a}}}",
		"extends of no service":            "services: {a: {extends: b, image: 'a:1'}}",
		"an env file that is gone":         "include: [{path: compose.yml, env_file: gone.env}]\nservices: {a: {image: 'a:1'}}",
	} {
		t.Run(name, func(t *testing.T) {
			images, err := Images(t.Context(), filepath.Join(folder(t, map[string]string{"compose.yml": body}), "compose.yml"))
			if err == nil || images != nil {
				t.Fatalf("images %q, error %v", images, err)
			}
			if !strings.Contains(err.Error(), "compose.yml") || strings.Contains(err.Error(), placeholder) {
				t.Errorf("the error is %v", err)
			}
		})
	}
	if images, err := Images(t.Context(), "/does/not/exist.yml"); err == nil {
		t.Errorf("a missing file: %q", images)
	}
	dir := folder(t, map[string]string{"compose.yml": "services: {a: {image: 'a:1'}}", ".env": "'"})
	if images, err := Images(t.Context(), filepath.Join(dir, "compose.yml")); err == nil {
		t.Errorf("a broken .env: %q", images)
	}
}

// FuzzSubstitute: where every variable is set, the result is that of Compose's own library; where
// none is, it has no text that Compose's doesn't have, and no panic.
func FuzzSubstitute(f *testing.F) {
	for _, seed := range []string{"a", "$A", "${A}", "${A:-b}/${B:+c$A}", "$$A", "${A:?x}", "${A", "${A:-${B}}}", "x${}y", "${A-}${B?}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		set := func(name string) (string, bool) { return "<" + name + ">", true }
		want, wantErr := template.Substitute(text, set)
		got, err := substitute(text, set)
		if (err == nil) != (wantErr == nil) {
			t.Errorf("%q: error %v, the library has %v", text, err, wantErr)
		}
		if err == nil && got != want {
			t.Errorf("%q: %q, the library has %q", text, got, want)
		}
		_, _ = substitute(text, func(string) (string, bool) { return "", false })
	})
}
