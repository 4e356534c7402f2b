//go:build integration

package integration

import (
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/fakehub"
)

// daemonFaults is what befalls every request that hubcache makes upstream; the limit is
// how long dockerd may take longer for it.
var daemonFaults = []struct {
	name   string
	match  fakehub.Match
	faults []fakehub.Fault
	limit  time.Duration
}{
	{"registry down", fakehub.Match{}, []fakehub.Fault{fakehub.Reset()}, 10 * time.Second},
	{"registry silent", fakehub.Match{}, []fakehub.Fault{fakehub.Hang()}, 10 * time.Second},
	{"no token", fakehub.Match{Face: fakehub.Token}, []fakehub.Fault{fakehub.Status(500, "")}, 10 * time.Second},
	{"manifests 500", fakehub.Match{Kind: "manifests"}, []fakehub.Fault{fakehub.Status(500, "")}, 10 * time.Second},
	{"manifests 429", fakehub.Match{Kind: "manifests"}, []fakehub.Fault{fakehub.TooManyRequests()}, 10 * time.Second},
	{"manifests 404", fakehub.Match{Kind: "manifests"}, []fakehub.Fault{fakehub.Status(404, "")}, 10 * time.Second},
	{"blobs 500", fakehub.Match{Face: fakehub.CDN}, []fakehub.Fault{fakehub.Status(500, "")}, 10 * time.Second},
	{"blobs 403", fakehub.Match{Face: fakehub.CDN}, []fakehub.Fault{fakehub.Status(403, "")}, 10 * time.Second},
	{"blobs 404", fakehub.Match{Kind: "blobs"}, []fakehub.Fault{fakehub.Status(404, "")}, 10 * time.Second},
	{"blobs silent", fakehub.Match{Face: fakehub.CDN}, []fakehub.Fault{fakehub.Hang()}, 10 * time.Second},
	{"blobs HAP429", fakehub.Match{Face: fakehub.CDN}, []fakehub.Fault{fakehub.HAP429()}, 10 * time.Second},
	{"bodies cut", fakehub.Match{Face: fakehub.CDN}, []fakehub.Fault{fakehub.CutAfter(0)}, 45 * time.Second},
	{"bodies stall", fakehub.Match{Face: fakehub.CDN}, []fakehub.Fault{fakehub.StallAfter(0)}, 45 * time.Second},
	{"bodies wrong", fakehub.Match{Face: fakehub.CDN}, []fakehub.Fault{fakehub.FlipByte(900 << 10)}, 45 * time.Second},
	{"bodies cut half way", fakehub.Match{Face: fakehub.CDN}, []fakehub.Fault{fakehub.CutAfter(1200 << 10), fakehub.IgnoreRange()}, 45 * time.Second},
	{"bodies HTML", fakehub.Match{Face: fakehub.CDN}, []fakehub.Fault{fakehub.HTML()}, 45 * time.Second},
}

// daemonSlack is what a pull takes by itself on a busy machine.
const daemonSlack = 15 * time.Second

// TestDaemonFallsBack: a dockerd whose mirror is hubcache, and which reaches the real Hub
// too. Whatever goes wrong between hubcache and its upstream, the pull succeeds, in time.
func TestDaemonFallsBack(t *testing.T) {
	accounts := fakehub.Options{AccountLimit: fakehub.Unlimited}
	upstream := startHub(t, accounts)
	hub := startHub(t, fakehub.Options{TLS: true, AnonymousLimit: fakehub.Unlimited,
		RegistryName: "registry-1.docker.io", TokenName: "auth.docker.io", CDNName: "production.cloudflare.docker.com"})
	network := dockertest.NewNetwork(t)
	proxy := startProxy(t, hub, network.Addr.String())
	for _, row := range daemonFaults {
		t.Run(row.name, func(t *testing.T) {
			s := startServer(t, serverOptions{Hub: upstream, Host: network.Addr.String()}) // cool-downs are another row's
			d := dockertest.Start(t, dockertest.Options{Network: network, Mirrors: []string{s.URL}, Env: []string{
				"HTTPS_PROXY=" + proxy.URL, "HTTP_PROXY=" + proxy.URL, "NO_PROXY=" + network.Addr.String(), "SSL_CERT_FILE=" + writeCA(t, hub)}})
			tag := "t" + time.Now().Format("150405.000000")
			img := runnableImage(t, upstream, "library/app", tag, 2, 2<<20, fakehub.ImageSpec{})
			if same := runnableImage(t, hub, "library/app", tag, 2, 2<<20, fakehub.ImageSpec{}); same.Digest != img.Digest {
				t.Fatal("the Hubs differ")
			}
			rule := upstream.Inject(row.match, row.faults...)
			defer rule.Remove()
			start := time.Now()
			out, err := d.TryDocker("pull", "app:"+tag)
			took := time.Since(start)
			if err != nil {
				t.Fatalf("after %s: %v\n%s", took, err, out)
			}
			t.Logf("%s", took.Round(100*time.Millisecond))
			if took > row.limit+daemonSlack {
				t.Errorf("the pull took %s", took)
			}
			if rule.Hits() == 0 {
				t.Error("the fault never happened")
			}
			checkRuns(t, d, "app:"+tag)
		})
	}
}
