//go:build integration

package integration

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestNixHostServesPulls boots a host with the units, configuration and files that the module
// renders for the case "boot". It checks what nix/nixos-test.nix checks with virtual machines,
// which can't be booted without nixpkgs.
func TestNixHostServesPulls(t *testing.T) {
	const token = "dckr_pat_of_the_test"
	h := bootHost(t, buildPrograms(t))
	h.serveHub(token, "3x4MiB")
	activate(t, h, mustNixEvaluate(t, "boot"), token)

	h.run("systemctl", "start", "docker.service")
	for _, unit := range []string{"hubcache.service", "hubcache-pull.socket", "hubcache-admin.socket", "hubcache-docker-watch.service"} {
		h.run("systemctl", "is-active", unit)
	}

	h.sub("a pull goes through the cache, with the account", func(t *testing.T) {
		h.run("docker", "pull", "--quiet", "busybox:latest")
		if ledger := h.ledger(); !strings.Contains(ledger, "jane") {
			t.Errorf("Hub did not see the account: %s", ledger)
		}
	})
	h.sub("no pull fails while the service restarts", func(t *testing.T) {
		h.pullThroughRestarts("big:1")
	})
	h.sub("with Hub gone, a removed image comes back from the cache", func(t *testing.T) {
		h.run("docker", "pull", "--quiet", "big:2")
		h.run("docker", "image", "rm", "big:2")
		h.run("systemctl", "stop", "hub.service")
		h.run("docker", "image", "rm", "busybox:latest")
		h.run("docker", "pull", "--quiet", "busybox:latest")
	})
	h.sub("prune waits for a hold, and works without one", func(t *testing.T) {
		h.run("docker", "pull", "--quiet", "big:1")
		h.run("docker", "pull", "--quiet", "big:2")
		h.run("useradd", "--groups=hubcache", "ci")
		h.run("systemd-run", "--unit=hold", "--uid=ci", hostPrograms+"/hubcache", "docker", "hold", "--", "sleep", "infinity")
		h.eventually("bash", "-c", "! flock -n /run/hubcache/hold/run true")
		images := func() int { return strings.Count(h.run("docker", "image", "ls", "--quiet", "big"), "\n") }
		h.run("systemctl", "start", "hubcache-docker-prune.service")
		if n := images(); n != 2 {
			t.Errorf("prune removed %d images under a hold", 2-n)
		}
		h.run("systemctl", "stop", "hold.service")
		// The newest image of a repository stays. A run leaves an image alone when docker watch
		// records the pull above only while it runs; then the next run removes it.
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
			out, _ := h.try("systemctl", "start", "hubcache-docker-prune.service") // 3: the disk is as full as before
			n := images()
			if n == 1 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d images after prunes without a hold: %s%s", n, out, h.run("journalctl", "--no-pager", "--unit=hubcache-docker-prune.service"))
			}
		}
	})
	h.sub("the admin socket is for its group", func(t *testing.T) {
		if out := h.run("stat", "-c", "%A %U %G", "/run/hubcache/admin.sock"); out != "srw-rw---- root hubcache\n" {
			t.Errorf("admin socket: %s", out)
		}
		stats := []string{"curl", "-fsS", "-o", "/dev/null", "--unix-socket", "/run/hubcache/admin.sock", "http://localhost/api/v1/stats"}
		h.run(append([]string{"setpriv", "--reuid=ci", "--regid=ci", "--init-groups"}, stats...)...)
		if out, err := h.try(append([]string{"setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"}, stats...)...); err == nil {
			t.Errorf("a user outside the group reached the admin socket: %s", out)
		}
	})
	h.sub("the service has no more rights than it needs", func(t *testing.T) {
		status := h.run("cat", "/proc/"+h.mainPID()+"/status")
		for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(status, want) {
				t.Errorf("no %q in its status:\n%s", want, status)
			}
		}
		if owner := h.run("stat", "-c", "%U", "/var/lib/private/hubcache"); owner == "root\n" {
			t.Error("the cache belongs to root")
		}
		if out, err := h.try("setpriv", "--reuid=ci", "--regid=ci", "--init-groups", "ls", "/var/lib/hubcache/"); err == nil {
			t.Errorf("another user reads the cache: %s", out)
		}
	})
	h.sub("the sandbox leaves the metrics of the process readable", func(t *testing.T) {
		metrics := h.run("curl", "-fsS", "http://127.0.0.1:5001/metrics")
		for _, name := range []string{"process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds", "go_goroutines"} {
			if !strings.Contains(metrics, "\n"+name+" ") {
				t.Errorf("no %s", name)
			}
		}
	})
	h.sub("the token reaches the service and no other user", func(t *testing.T) {
		where := "/run/credentials/hubcache.service/dockerhub-pat"
		if got := h.run("cat", where); got != token {
			t.Errorf("credential %q", got)
		}
		if out, err := h.try("setpriv", "--reuid=ci", "--regid=ci", "--init-groups", "cat", where); err == nil {
			t.Errorf("another user reads the token: %s", out)
		}
		if leak, err := h.try("grep", "--recursive", "--files-with-matches", token, "/proc/"+h.mainPID()+"/environ", "/proc/"+h.mainPID()+"/cmdline", "/etc/hubcache", "/etc/systemd/system"); err == nil {
			t.Errorf("the token is in %s", leak)
		}
		if log := h.run("journalctl", "--no-pager", "--unit=hubcache.service"); strings.Contains(log, token) {
			t.Error("the token is in the log")
		}
	})
	h.sub("a reload applies new settings and keeps the process", func(t *testing.T) {
		pid := h.mainPID()
		h.run("sed", "-i", "s/1GiB/3GiB/", "/etc/hubcache/config.yaml")
		h.run("systemctl", "reload", "hubcache.service")
		h.eventually("bash", "-c", "curl -fsS http://127.0.0.1:5001/api/v1/stats | grep -F 3221225472")
		if h.mainPID() != pid {
			t.Error("a reload restarted the service")
		}
	})
	h.sub("a service that hangs is replaced", func(t *testing.T) {
		h.write("/run/systemd/system/hubcache.service.d/watchdog.conf", "0644", "[Service]\nWatchdogSec=3s\n")
		h.run("systemctl", "daemon-reload")
		h.run("systemctl", "restart", "hubcache.service")
		pid := h.mainPID()
		time.Sleep(7 * time.Second) // twice the limit, to see that it sends its messages
		if h.mainPID() != pid {
			t.Fatal("the watchdog ended a healthy service")
		}
		h.run("kill", "-STOP", pid)
		h.eventually("bash", "-c", `new=$(systemctl show --property=MainPID --value hubcache.service); test "$new" != 0 && test "$new" != `+pid)
		h.eventually("systemctl", "is-active", "hubcache.service")
	})
	h.sub("the port changes, in the order in which NixOS switches", func(t *testing.T) {
		h.run("systemctl", "stop", "hubcache-pull.socket")
		h.run("sed", "-i", "s/127.0.0.1:5000/127.0.0.1:5005/", "/etc/systemd/system/hubcache-pull.socket", "/etc/hubcache/config.yaml")
		h.run("systemctl", "daemon-reload")
		h.run("systemctl", "restart", "hubcache.service")
		h.run("systemctl", "start", "hubcache-pull.socket")
		h.run("curl", "-fsS", "http://127.0.0.1:5005/v2/")
	})
}

// TestNixHostWithOwnFolderAndPort moves the cache of a host as docs/use/moving-data.md says: to a
// configured folder, which belongs to a static user. Its port becomes one that only root may open.
// What was cached is served from there, without Docker Hub.
func TestNixHostWithOwnFolderAndPort(t *testing.T) {
	const token = "dckr_pat_of_the_test"
	h := bootHost(t, buildPrograms(t))
	h.serveHub(token, "1x1MiB")
	activate(t, h, mustNixEvaluate(t, "boot"), token)
	h.run(hostPrograms+"/hubcache", "warm", "big:2")
	if log := h.run("journalctl", "--no-pager", "--unit=hubcache.service"); strings.Contains(log, "needs a look") {
		t.Errorf("the server warns of what the module has set:\n%s", log)
	}
	h.run("systemctl", "stop", "hub.service", "docker.service")

	all := []string{"hubcache-pull.socket", "hubcache-admin.socket", "hubcache.service"}
	h.run(append([]string{"systemctl", "stop"}, all...)...) // a rebuild restarts what has changed
	activate(t, h, mustNixEvaluate(t, "bootElsewhere"), "unused")
	h.run(append([]string{"systemctl", "stop"}, all...)...)
	h.shell("rm -rf /srv/cache/hubcache/*")
	h.run("cp", "-a", "--sparse=always", "/var/lib/private/hubcache/.", "/srv/cache/hubcache/")
	h.run("chown", "-R", "hubcache:hubcache", "/srv/cache/hubcache")
	h.run(append([]string{"systemctl", "start"}, all...)...)
	if list := h.run(hostPrograms+"/hubcache", "ls"); !strings.Contains(list, "big:2") {
		t.Errorf("the moved cache has:\n%s", list)
	}
	h.run("curl", "-fsS", "http://127.0.0.1/v2/library/big/manifests/2")
	if owner := h.run("stat", "-c", "%U %A", "/srv/cache/hubcache", "/srv/cache/hubcache/index.db"); owner != "hubcache drwx------\nhubcache -rw-------\n" {
		t.Errorf("the cache belongs to %s", owner)
	}
	if status := h.run("cat", "/proc/"+h.mainPID()+"/status"); !strings.Contains(status, "CapEff:\t0000000000000000") {
		t.Errorf("the service has capabilities:\n%s", status)
	}
}

// activate does with an evaluated configuration what NixOS's activation does.
func activate(t *testing.T, h *bootedHost, e nixEvaluation, token string) {
	t.Helper()
	h.write("/etc/secrets/dockerhub-pat", "0400", token)
	h.write("/etc/hubcache/config.yaml", "0644", string(e.Settings))
	for _, group := range e.Groups {
		h.run("groupadd", "--system", "--force", group)
	}
	for _, user := range e.Users {
		h.run("useradd", "--system", "--gid=hubcache", user)
	}
	var rules strings.Builder
	for path, kinds := range e.Tmpfiles["hubcache"] {
		for kind, rule := range kinds {
			rules.WriteString(strings.Join([]string{kind, path, rule.Mode, rule.User, rule.Group, "-\n"}, " "))
		}
	}
	h.write("/etc/tmpfiles.d/hubcache.conf", "0644", rules.String())
	h.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/hubcache.conf")

	// dockerd's iptables rules and bridge need kernel modules and a network that this host lacks.
	daemon, err := json.Marshal(map[string]any{"registry-mirrors": e.Docker.Mirrors, "iptables": false, "bridge": "none"})
	if err != nil {
		t.Fatal(err)
	}
	h.write("/etc/docker/daemon.json", "0644", string(daemon))
	h.write("/etc/docker/certs.d/docker.io/hosts.toml", "0644", e.Hosts)

	enable := []string{"systemctl", "enable", "--now", "--quiet"}
	for name, text := range e.Units {
		h.write("/etc/systemd/system/"+name, "0644", strings.ReplaceAll(text, stubProgram, hostPrograms+"/hubcache"))
		if strings.Contains(text, "[Install]") {
			enable = append(enable, name)
		}
	}
	h.run("systemctl", "daemon-reload")
	h.run(enable...)
}
