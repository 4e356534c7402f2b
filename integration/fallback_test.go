//go:build integration

package integration

import (
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// upstreamFaults are faults that all matching requests of hubcache to its upstream have. limit is
// how much longer a pull by dockerd may take.
var upstreamFaults = []struct {
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
	{"bodies cut", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.CutAfter(0)}, 25 * time.Second},
	{"bodies stall", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.StallAfter(0)}, 25 * time.Second},
	{"bodies wrong", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.FlipByte(900 << 10)}, 25 * time.Second},
	{"bodies cut half way", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.CutAfter(1200 << 10), hubtest.IgnoreRange()}, 25 * time.Second},
	{"bodies HTML", hubtest.Match{Face: hubtest.CDN}, []hubtest.Fault{hubtest.HTML()}, 25 * time.Second},
}

// pullTime is how long a pull without a fault may take on a busy machine. With a row's limit it is
// below the 75 s that dockerd waits for a mirror which answers 5xx.
const pullTime = 45 * time.Second

// TestDaemonFallsBackOnUpstreamFaults pulls with a dockerd that has hubcache as its mirror and
// can also reach Docker Hub itself. Whatever goes wrong between hubcache and its upstream, the
// pull must succeed in time.
func TestDaemonFallsBackOnUpstreamFaults(t *testing.T) {
	accounts := hubtest.Options{AccountLimit: hubtest.Unlimited}
	upstream := startHub(t, accounts)
	hub := startHub(t, hubtest.Options{TLS: true, AnonymousLimit: hubtest.Unlimited,
		RegistryName: "registry-1.docker.io", TokenName: "auth.docker.io", CDNName: "production.cloudflare.docker.com"})
	network := dockertest.NewNetwork(t)
	proxy := startProxy(t, network.Addr.String(), hub)
	for _, row := range upstreamFaults {
		t.Run(row.name, func(t *testing.T) {
			s := startServer(t, serverOptions{Hub: upstream, Host: network.Addr.String()}) // without cool-downs of the row before
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
			if took > row.limit+pullTime {
				t.Errorf("the pull took %s", took)
			}
			if rule.Hits() == 0 {
				t.Error("no request had the fault")
			}
			checkRuns(t, d, "app:"+tag)
		})
	}
}

// TestDaemonFallsBackWhenHubcacheCannotPull pulls with a daemon that can also reach Docker Hub
// itself, while hubcache can't pull or does not run. The pull must succeed without the 75 s that
// dockerd waits for a mirror which answers 5xx.
func TestDaemonFallsBackWhenHubcacheCannotPull(t *testing.T) {
	lab := newDeployLab(t, hubtest.Options{})
	d := dockertest.Start(t, dockertest.Options{Network: lab.network, Mirrors: []string{lab.cache.URL},
		Env: []string{"HTTPS_PROXY=" + lab.proxy.URL, "SSL_CERT_FILE=" + lab.ca, "NO_PROXY=" + lab.network.Addr.String()}})
	for name, breakCache := range map[string]func(){
		"token-refused": func() {
			lab.hub.Set(func(o *hubtest.Options) { o.Accounts = []hubtest.Account{{Username: labUser, PAT: "revoked"}} })
			lab.cache.Start()
		},
		"account-has-no-pulls-left": func() {
			lab.hub.Set(func(o *hubtest.Options) { o.Accounts = []hubtest.Account{{Username: labUser, PAT: labPAT, Limit: 1}} })
			lab.hub.SetUsed(labUser, 1)
			lab.cache.Start()
		},
		"stopped": func() {},
	} {
		t.Run(name, func(t *testing.T) {
			runnableImage(t, lab.hub, "library/"+name, "1", 1, 1<<20, hubtest.ImageSpec{})
			lab.cache.Stop()
			breakCache()
			lab.hub.ResetLedger()
			start := time.Now()
			d.Docker("pull", name+":1")
			if took := time.Since(start); took > time.Minute {
				t.Errorf("the pull took %v", took)
			}
			checkRuns(t, d, name+":1")
			if direct := lab.hub.Used(""); direct == 0 {
				t.Errorf("the daemon did not pull from Docker Hub itself:\n%s", lab.hub.Ledger())
			}
		})
	}
}
