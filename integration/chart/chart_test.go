// Package chart tests packaging/helm/hubcache: what it renders from its examples is compared with
// golden files, decoded strictly, and used.
//
//	go test . -update    writes the golden files
package chart

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files")

const (
	root  = "../.."
	chart = root + "/packaging/helm/hubcache"
	// kubernetes is the version to render for. A helm that isn't a release believes in an old one.
	kubernetes = "1.33.0"
)

// helm returns the helm that integration/install-tools builds.
func helm(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("helm.version")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "hubcache-test", "helm-"+strings.TrimPrefix(strings.TrimSpace(string(b)), "helm="), "helm")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("helm is missing; integration/install-tools builds it: %v", err)
	}
	return path
}

// render renders the chart with a file of values, "" for none, and further arguments.
func render(t *testing.T, values string, args ...string) (string, error) {
	t.Helper()
	args = append([]string{"template", "hubcache", chart, "--namespace", "hubcache", "--kube-version", kubernetes}, args...)
	if values != "" {
		args = append(args, "--values", values)
	}
	return run(exec.Command(helm(t), args...))
}

// run returns a command's standard output, and after a failure its standard error instead.
func run(cmd *exec.Cmd) (string, error) {
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "HELM_CACHE_HOME=/nonexistent", "HELM_CONFIG_HOME=/nonexistent", "HELM_DATA_HOME=/nonexistent")
	var out, failure bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failure
	if err := cmd.Run(); err != nil {
		return failure.String() + out.String(), err
	}
	return out.String(), nil
}

// TestExamples lints and renders each example.
func TestExamples(t *testing.T) {
	examples, err := filepath.Glob(chart + "/examples/*.yaml")
	if err != nil || len(examples) < 2 {
		t.Fatalf("examples: %v %v", examples, err)
	}
	for _, values := range examples {
		name := strings.TrimSuffix(filepath.Base(values), ".yaml")
		t.Run(name, func(t *testing.T) {
			if out, err := run(exec.Command(helm(t), "lint", "--strict", chart, "--kube-version", kubernetes, "--values", values)); err != nil {
				t.Errorf("helm lint: %v\n%s", err, out)
			}
			out, err := render(t, values)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			objects := decode(t, out)
			checkGolden(t, "testdata/"+name+".yaml", out)
			checkSettings(t, objects)
			checkCopies(t, objects)
		})
	}
}

// object is one object that the chart renders.
type object struct {
	Kind  string
	Text  string
	Typed any // nil for custom resources
}

// decode splits what helm renders and decodes each object strictly: a field that Kubernetes doesn't
// know, or that is there twice, is an error. Custom resources are checked by their schemas.
func decode(t *testing.T, out string) (objects []object) {
	t.Helper()
	for text := range strings.SplitSeq(out, "\n---\n") {
		text = strings.TrimPrefix(text, "---\n")
		var head struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal([]byte(text), &head); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		o := object{Kind: head.Kind, Text: text}
		switch head.APIVersion + "/" + head.Kind {
		case "/":
			continue // only comments
		case "v1/ConfigMap":
			o.Typed = &corev1.ConfigMap{}
		case "v1/Service":
			o.Typed = &corev1.Service{}
		case "apps/v1/StatefulSet":
			o.Typed = &appsv1.StatefulSet{}
		case "apps/v1/DaemonSet":
			o.Typed = &appsv1.DaemonSet{}
		case "networking.k8s.io/v1/NetworkPolicy":
			o.Typed = &networkingv1.NetworkPolicy{}
		case "monitoring.coreos.com/v1/ServiceMonitor", "monitoring.coreos.com/v1/PrometheusRule":
			checkCustom(t, head.Kind, text)
		default:
			t.Errorf("no type for %s %s", head.APIVersion, head.Kind)
		}
		if o.Typed != nil {
			if err := yaml.UnmarshalStrict([]byte(text), o.Typed); err != nil {
				t.Errorf("%s: %v\n%s", head.Kind, err, text)
			}
		}
		objects = append(objects, o)
	}
	return objects
}

// checkCustom validates a custom resource by testdata/<kind>.schema.json.
func checkCustom(t *testing.T, kind, text string) {
	t.Helper()
	schema, err := jsonschema.NewCompiler().Compile("testdata/" + strings.ToLower(kind) + ".schema.json")
	if err != nil {
		t.Fatal(err)
	}
	b, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(value); err != nil {
		t.Errorf("%s: %v", kind, err)
	}
}

// checkGolden compares what helm renders with a golden file. The alert rules and the dashboard are
// left out: they are copies, and checkCopies compares them with the originals.
func checkGolden(t *testing.T, file, out string) {
	t.Helper()
	var keep []string
	for text := range strings.SplitSeq(out, "\n---\n") {
		if !strings.Contains(text, "kind: PrometheusRule") && !strings.Contains(text, "hubcache.json: |") {
			keep = append(keep, text)
		}
	}
	got := strings.Join(keep, "\n---\n")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the chart renders something else than %s; go test . -update writes it. Now:\n%s", file, got)
	}
}

// checkSettings checks that hubcache takes the settings file.
func checkSettings(t *testing.T, objects []object) {
	t.Helper()
	for _, o := range objects {
		config, ok := o.Typed.(*corev1.ConfigMap)
		if !ok || config.Data["config.yaml"] == "" {
			continue
		}
		dir := t.TempDir()
		// The files of the tokens are the pod's.
		text := strings.ReplaceAll(config.Data["config.yaml"], "/run/secrets/hubcache/", dir+"/")
		for _, token := range []string{"account", "tokens/quay", "tokens/access", "tokens/secret"} {
			write(t, filepath.Join(dir, token), "dckr_pat_of_the_test")
		}
		file := filepath.Join(dir, "config.yaml")
		write(t, file, text)
		cmd := exec.Command(root+"/bin/hubcache", "config", "check", file)
		if strings.Contains(text, "shared:") {
			cmd.Env = append(os.Environ(), "HUBCACHE_SHARED_ADVERTISE=http://hubcache-0.hubcache-pods.hubcache.svc:5000") // as the pod has it
		}
		if out, err := run(cmd); err != nil || strings.Contains(out, "warning") {
			t.Errorf("hubcache config check: %v\n%s\n%s", err, out, text)
		}
		return
	}
	t.Error("there is no ConfigMap with config.yaml")
}

// checkCopies checks that rules and dashboard, where the chart renders them, are those of packaging.
func checkCopies(t *testing.T, objects []object) {
	t.Helper()
	for _, o := range objects {
		if o.Kind == "PrometheusRule" {
			var got struct{ Spec any }
			var want any
			unmarshal(t, []byte(o.Text), &got)
			unmarshal(t, readFile(t, root+"/packaging/prometheus/hubcache.rules.yaml"), &want)
			if a, b := canonical(t, got.Spec), canonical(t, want); a != b {
				t.Errorf("the alert rules differ:\n%s\n%s", a, b)
			}
		}
		if config, ok := o.Typed.(*corev1.ConfigMap); ok && config.Data["hubcache.json"] != "" {
			if strings.TrimSpace(config.Data["hubcache.json"]) != strings.TrimSpace(string(readFile(t, root+"/packaging/grafana/hubcache.json"))) {
				t.Error("the dashboard differs from packaging/grafana")
			}
		}
	}
}

func unmarshal(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := yaml.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func canonical(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
