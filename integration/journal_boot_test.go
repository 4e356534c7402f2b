//go:build integration

package integration

import (
	"strings"
	"testing"
)

// TestJournalShowsWarningsAlone: under a booted systemd, journalctl -p warning shows what an
// operator has to know, and none of the ordinary lines: neither of the start and the stop nor of
// requests that went well.
func TestJournalShowsWarningsAlone(t *testing.T) {
	h := bootHost(t, buildPrograms(t))
	h.serveHub("dckr_pat_of_the_test", "2x4MiB")
	h.run("systemd-run", "--unit=smallhub", "--quiet", hostPrograms+"/fakehubd", "--registry", "127.0.0.1:5200", "--token", "127.0.0.1:5201",
		"--cdn", "127.0.0.1:5202", "--anonymous-limit", "1", "--image", "library/big:1=1x1MiB", "--image", "library/big:2=1x2MiB")
	h.eventually("curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:5200/ledger")
	h.write("/run/wrong-token", "0400", "dckr_pat_that_is_wrong")
	h.shell("mkdir /mnt/full && mount -t tmpfs -o size=6m tmpfs /mnt/full")

	const good, limited, none = "http://127.0.0.1:5100", "http://127.0.0.1:5200", "http://127.0.0.1:9"
	for _, c := range []struct {
		unit, upstream string
		args           []string
		requests       []string
		warning        string
	}{
		{"token-refused", good, []string{"--username", "jane", "--password-file", "/run/wrong-token"}, []string{"manifests/1"}, "the access token was refused"},
		{"upstream-dead", none, nil, []string{"manifests/1"}, "the upstream can't be reached"},
		{"quota-gone", limited, nil, []string{"manifests/1", "manifests/2"}, "the pull quota is used up"},
		{"disk-full", good, []string{"--data-dir", "/mnt/full/data", "--min-free", "0"}, []string{"manifests/1", "layers"}, "the disk is full"},
	} {
		h.sub(c.unit, func(t *testing.T) {
			args := append([]string{"systemd-run", "--unit=" + c.unit, "--quiet", "--property=Type=notify", hostPrograms + "/hubcache", "serve",
				"--listen", "127.0.0.1:6000", "--admin-listen", "127.0.0.1:6001", "--data-dir", "/run/data-" + c.unit, "--upstream", c.upstream}, c.args...)
			h.run(args...)
			for _, r := range c.requests {
				if r == "layers" {
					h.shell(`curl -sS http://127.0.0.1:6000/v2/library/big/manifests/1 | grep -o 'sha256:[0-9a-f]*' | while read d; do
						curl -sS -o /dev/null http://127.0.0.1:6000/v2/library/big/blobs/$d; done`)
				} else {
					h.run("curl", "-sS", "-o", "/dev/null", "http://127.0.0.1:6000/v2/library/big/"+r)
				}
			}
			h.run("curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:6000/v2/")
			h.run("systemctl", "stop", c.unit)
			h.run("journalctl", "--sync")
			all, warnings := h.run("journalctl", "--no-pager", "--output=cat", "--unit="+c.unit), h.run("journalctl", "--no-pager", "--output=cat", "--priority=warning", "--unit="+c.unit)
			if !strings.Contains(warnings, c.warning) {
				t.Errorf("%q is not among the warnings:\n%s\nof\n%s", c.warning, warnings, all)
			}
			for _, ordinary := range []string{"hubcache is ready", `"msg":"stopped"`, `"status":200`} {
				if !strings.Contains(all, ordinary) || strings.Contains(warnings, ordinary) {
					t.Errorf("%q is missing, or is among the warnings:\n%s\nof\n%s", ordinary, warnings, all)
				}
			}
			if strings.Contains(all, "<6>") || strings.Contains(all, "<4>") {
				t.Errorf("the journal has left the levels in the lines:\n%s", all)
			}
		})
	}
	h.sub("start fails", func(t *testing.T) {
		h.try("systemd-run", "--unit=no-start", "--quiet", "--wait", hostPrograms+"/hubcache", "serve", "--listen", "nowhere")
		h.run("journalctl", "--sync")
		if warnings := h.run("journalctl", "--no-pager", "--output=cat", "--priority=err", "--unit=no-start"); !strings.Contains(warnings, "nowhere") {
			t.Errorf("why the start failed is not among the errors:\n%s", warnings)
		}
	})
}
