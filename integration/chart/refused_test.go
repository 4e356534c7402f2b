package chart

import (
	"strings"
	"testing"
)

// TestWrongValuesAreRefused renders values that can't work. Each has to be refused, with a message
// that names the value.
func TestWrongValuesAreRefused(t *testing.T) {
	const nodes = "networkPolicy.nodes={10.0.0.0/24}"
	for _, c := range []struct {
		set  []string
		want string
	}{
		{nil, "networkPolicy.nodes is empty"},
		{[]string{"networkPolicy.nodes={10.0.0.1}"}, "networkPolicy/nodes/0"},
		{[]string{nodes, "containerd.enabled=true"}, "needs service.clusterIP or service.nodePort"},
		{[]string{nodes, "service.nodePort=30500"}, "service/type"},
		{[]string{nodes, "account.existingSecret=a"}, "account/username"},
		{[]string{nodes, "account.username=jane"}, "account/username"},
		{[]string{nodes, "registries.quay\\.io.password_file=quay"}, "tokens has no such item"},
		{[]string{nodes, "settings.listen={0.0.0.0:5000}"}, "settings/listen"},
		{[]string{nodes, "budget=lots"}, "budget"},
		{[]string{nodes, "replica=2"}, "replica"},
	} {
		var args []string
		for _, set := range c.set {
			args = append(args, "--set", set)
		}
		out, err := render(t, "", args...)
		if plain := strings.NewReplacer(".", "/", "'", "").Replace(out); err == nil || !strings.Contains(out, c.want) && !strings.Contains(plain, c.want) {
			t.Errorf("--set %v: %v, want %q:\n%s", c.set, err, c.want, out)
		}
	}
	if out, err := render(t, "", "--set", nodes); err != nil {
		t.Errorf("with the nodes alone: %v\n%s", err, out)
	}
	if out, err := render(t, "", "--set", "networkPolicy.enabled=false"); err != nil {
		t.Errorf("without a policy: %v\n%s", err, out)
	}
}
