//go:build integration

package integration

import (
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// daemonFaults is what befalls every request that hubcache makes upstream; the limit is
// how long dockerd may take longer for it.
var daemonFaults = []struct {
	name   string
	match  hubtest.Match
	faults []hubtest.Fault
	limit  time.Duration
}{
	{"registry down", hubtest.Match{}, []hubtest.Fault{hubtest.Reset()}, 10 * time.Second},
	{"registry silent", hubtest.Match{}, []hubtest.Fault{hubtest.Hang()}, 10 * time.Second},
	{"no token", hubtest.Match{Face: hubtest.Token}, []hubtest.Fault{hubtest.Status(500, "")}, 10 * time.Second},
	{"manifests 500", hubtest.Match{Kind: "manifests"}, []hubtest.Fault{hubtest.Status(500, "")}, 10 * time.Second},
	{"manifests 429", hubtest.Match{Kind: "manifests"}, []hubtest.Fault{hubtest.TooManyRequests()}, 10 * time.Second},
	{"manifests 404", hubtest.Match{Kind: "manifests"}, []hubtest.Fault{hubtest.Status(404, "")}, 10 * time.Second},
	{"blobs 500", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.Status(500, "")}, 10 * time.Second},
	{"blobs 403", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.Status(403, "")}, 10 * time.Second},
	{"blobs 404", hubtest.Match{Kind: "blobs"}, []hubtest.Fault{hubtest.Status(404, "")}, 10 * time.Second},
	{"blobs silent", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.Hang()}, 10 * time.Second},
	{"blobs HAP429", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.HAP429()}, 10 * time.Second},
	{"bodies cut", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.CutAfter(0)}, 45 * time.Second},
	{"bodies stall", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.StallAfter(0)}, 45 * time.Second},
	{"bodies wrong", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.FlipByte(900 << 10)}, 45 * time.Second},
	{"bodies cut half way", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.CutAfter(1200 << 10), hubtest.IgnoreRange()}, 45 * time.Second},
	{"bodies HTML", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.HTML()}, 45 * time.Second},
}

// daemonSlack is what a pull takes by itself on a busy machine.
const daemonSlack = 15 * time.Second

// TestDaemonFallsBackOnUpstreamFaults: a dockerd whose mirror is hubcache, and which reaches the real Hub
// too. Whatever goes wrong between hubcache and its upstream, the pull succeeds, in time.
func TestDaemonFallsBackOnUpstreamFaults(t *testing.T) {
	accounts := hubtest.Options{AccountLimit: hubtest.Unlimited}
	upstream := startHub(t, accounts)
	hub := startHub(t, hubtest.Options{TLS: true, AnonymousLimit: hubtest.Unlimited,
		RegistryName: "registry-1.docker.io", TokenName: "auth.docker.io", CDNName: "production.cloudflare.docker.com"})
	network := dockertest.NewNetwork(t)
	proxy := startProxy(t, hub, network.Addr.String())
	for _, row := range daemonFaults {
		t.Run(row.name, func(t *testing.T) {
			s := startServer(t, serverOptions{Hub: upstream, Host: network.Addr.String()}) // cool-downs are another row's
			d := dockertest.Start(t, dockertest.Options{Network: network, Mirrors: []string{s.URL}, Env: []string{
				"HTTPS_PROXY=" + proxy.URL, "HTTP_PROXY=" + proxy.URL, "NO_PROXY=" + network.Addr.String(), "SSL_CERT_FILE=" + writeCA(t, hub)}})
			tag := "t" + time.Now().Format("150405.000000")
			img := runnableImage(t, upstream, "library/app", tag, 2, 2<<20, hubtest.ImageSpec{})
			if same := runnableImage(t, hub, "library/app", tag, 2, 2<<20, hubtest.ImageSpec{}); same.Digest != img.Digest {
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
