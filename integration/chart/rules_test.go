package chart

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// find returns the one object of a type that an example renders.
func find[T any](t *testing.T, example string) T {
	t.Helper()
	out, err := render(t, chart+"/examples/"+example+".yaml")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, o := range decode(t, out) {
		if typed, ok := o.Typed.(T); ok {
			return typed
		}
	}
	t.Fatalf("%s renders no %T", example, *new(T))
	panic("not reached")
}

// TestPolicyAdmitsNobodyElse checks that the pull port is open to nodes and named namespaces, the
// metrics to the monitoring namespace, and that no rule admits everybody or another port.
func TestPolicyAdmitsNobodyElse(t *testing.T) {
	policy := find[*networkingv1.NetworkPolicy](t, "cluster")
	pod := find[*appsv1.StatefulSet](t, "cluster").Spec.Template
	for label, value := range policy.Spec.PodSelector.MatchLabels {
		if pod.Labels[label] != value {
			t.Errorf("the policy selects %s=%s, and the pods have %q", label, value, pod.Labels[label])
		}
	}
	ports := map[string]int{}
	for _, rule := range policy.Spec.Ingress {
		if len(rule.Ports) != 1 || len(rule.From) == 0 {
			t.Fatalf("a rule with %d ports from %d peers", len(rule.Ports), len(rule.From))
		}
		for _, peer := range rule.From {
			if peer.IPBlock == nil && (peer.NamespaceSelector == nil || len(peer.NamespaceSelector.MatchLabels) == 0) {
				t.Errorf("a peer without a selector: %+v", peer)
			}
		}
		ports[rule.Ports[0].Port.String()] = len(rule.From)
	}
	if len(ports) != 2 || ports["pull"] != 2 || ports["metrics"] != 1 {
		t.Errorf("the policy admits %v", ports)
	}
	for _, port := range pod.Spec.Containers[0].Ports {
		if _, ok := ports[port.Name]; !ok {
			t.Errorf("no rule for the port %s", port.Name)
		}
	}
}

// TestPodHasNoRights checks the pod's restrictions, which the policy "restricted" of Kubernetes asks
// for, and that tokens are readable for its group at most.
func TestPodHasNoRights(t *testing.T) {
	spec := find[*appsv1.StatefulSet](t, "cluster").Spec.Template.Spec
	c := spec.Containers[0].SecurityContext
	if !*spec.SecurityContext.RunAsNonRoot || *c.AllowPrivilegeEscalation || !*c.ReadOnlyRootFilesystem ||
		len(c.Capabilities.Drop) != 1 || c.Capabilities.Drop[0] != "ALL" || spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("%+v %+v", spec.SecurityContext, c)
	}
	if *spec.EnableServiceLinks || *spec.AutomountServiceAccountToken {
		t.Error("the pod gets service links, or a token of the cluster")
	}
	for _, v := range spec.Volumes {
		if v.Projected != nil && *v.Projected.DefaultMode != 0o400 {
			t.Errorf("the volume %s has the mode %o", v.Name, *v.Projected.DefaultMode)
		}
	}
}

// TestContainerdScript runs the DaemonSet's script: it writes hosts.toml, leaves files of others
// alone, and removes its own at the end, also those of an earlier run.
func TestContainerdScript(t *testing.T) {
	for example, want := range map[string]string{"cluster": "http://10.96.0.50:5000", "nodeport": "http://[fd00:10::7]:30500"} {
		t.Run(example, func(t *testing.T) {
			certs := t.TempDir()
			foreign := filepath.Join(certs, "ghcr.io", "hosts.toml")
			write(t, foreign, "server = \"https://ghcr.io\"\n")
			earlier := filepath.Join(certs, "gone.example", "hosts.toml")
			write(t, earlier, "# Written by hubcache's chart, and removed with it.\n")
			container := find[*appsv1.DaemonSet](t, example).Spec.Template.Spec.Containers[0]
			cmd := exec.Command("busybox", "sh", "-c", container.Args[0])
			cmd.Env = append(os.Environ(), "HOST_IP=fd00:10::7", "CERTS="+certs)
			for _, v := range container.Env {
				if v.ValueFrom == nil && v.Name != "CERTS" {
					cmd.Env = append(cmd.Env, v.Name+"="+v.Value)
				}
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(certs, "docker.io", "hosts.toml")
			for range 600 {
				if _, err := os.Stat(file); err == nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			got := string(readFile(t, file))
			if !strings.Contains(got, "\nserver = \"https://registry-1.docker.io\"\n") || !strings.Contains(got, "[host.\""+want+"\"]\n") {
				t.Errorf("hosts.toml:\n%s", got)
			}
			if _, err := os.Stat(earlier); err == nil {
				t.Error("a registry that is no longer named keeps its file")
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("the script ends with: %v", err)
			}
			if _, err := os.Stat(filepath.Dir(file)); err == nil {
				t.Error("docker.io is left")
			}
			if string(readFile(t, foreign)) != "server = \"https://ghcr.io\"\n" {
				t.Error("a file of somebody else was changed")
			}
		})
	}
}
