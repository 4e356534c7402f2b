package hubcache

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestRecipeIsWhole checks what abra and its users expect of packaging/coop-cloud: one version
// everywhere with its release note, a version for each config, and settings that exist.
func TestRecipeIsWhole(t *testing.T) {
	const dir = "packaging/coop-cloud/"
	files := repository(t)
	var compose struct {
		Services map[string]struct {
			Image  string
			Deploy struct{ Labels []string }
		}
		Configs map[string]struct{ Name, File string }
	}
	if err := yaml.Unmarshal([]byte(read(t, dir+"compose.yml")), &compose); err != nil {
		t.Fatal(err)
	}
	_, tag, _ := strings.Cut(compose.Services["app"].Image, ":")
	i := slices.IndexFunc(compose.Services["app"].Deploy.Labels, func(l string) bool { return strings.HasPrefix(l, "coop-cloud.${STACK_NAME}.version=") })
	if i < 0 {
		t.Fatal("compose.yml has no label with the recipe's version")
	}
	_, version, _ := strings.Cut(compose.Services["app"].Deploy.Labels[i], "=")
	if !strings.HasSuffix(version, "+"+tag) {
		t.Errorf("the recipe's version is %s, and the image's %s", version, tag)
	}
	if !slices.Contains(files, dir+"release/"+version) {
		t.Errorf("no release note for version %s", version)
	}
	var chart struct {
		AppVersion string `yaml:"appVersion"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "packaging/helm/hubcache/Chart.yaml")), &chart); err != nil {
		t.Fatal(err)
	}
	if chart.AppVersion != tag {
		t.Errorf("the recipe's image is %s, and the Helm chart's %s", tag, chart.AppVersion)
	}
	for name, config := range compose.Configs {
		variable := strings.ToUpper(name) + "_VERSION"
		if !strings.HasSuffix(config.Name, "${"+variable+"}") || !strings.Contains(read(t, dir+"abra.sh"), "export "+variable+"=v") {
			t.Errorf("config %s: its name doesn't end with ${%s}, or abra.sh has no such version", name, variable)
		}
		if !slices.Contains(files, dir+config.File) {
			t.Errorf("config %s: there is no file %s", name, config.File)
		}
	}
	checkRecipeVariables(t, dir)
	readme := read(t, dir+"README.md")
	for _, row := range []string{"Category", "Status", "Image", "Healthcheck", "Backups", "Email", "Tests", "SSO"} {
		if !strings.Contains(readme, "* **"+row+"**: ") {
			t.Errorf("the README's metadata has no %s", row)
		}
	}
}

// checkRecipeVariables checks that each variable of the recipe that begins like a setting is one.
func checkRecipeVariables(t *testing.T, dir string) {
	t.Helper()
	known := []string{"HUBCACHE_SETTINGS", "HUBCACHE_USERNAME", "HUBCACHE_PASSWORD_FILE"}
	for _, key := range settingKeys(t, read(t, exampleConfig)) {
		known = append(known, "HUBCACHE_"+strings.ToUpper(strings.ReplaceAll(key, ".", "_")))
	}
	for _, file := range []string{"compose.yml", "compose.token.yml", "compose.shared.yml", ".env.sample"} {
		for _, name := range regexp.MustCompile(`\bHUBCACHE_[A-Z_]+`).FindAllString(read(t, dir+file), -1) {
			if !slices.Contains(known, name) {
				t.Errorf("%s: %s is no setting", file, name)
			}
		}
	}
}
