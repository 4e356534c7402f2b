//go:build integration

package integration

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-units"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

var (
	demo    = flag.Bool("demo", false, "TestDemo: five runs instead of one, with progress on the terminal")
	demoDoc = flag.String("demo.doc", "", "TestDemo: write the table into this `file`, between its two markers")
)

// demoMarker is the line before and after the table in the document.
const demoMarker = "<!-- written by make demo -->\n"

// demoWay is one way to deploy the recipe, with its measurements.
type demoWay struct {
	name  string
	times []time.Duration
	bytes int64 // from Docker Hub in one run
	pulls int   // counted against the quota in one run
}

// row is the line of the table for this way.
func (w *demoWay) row() string {
	times := slices.Sorted(slices.Values(w.times))
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
	return fmt.Sprintf("| %-26s | %7s | %6s | %6s | %15s | %5d |\n", w.name,
		seconds(w.median()), seconds(times[0]), seconds(times[len(times)-1]), units.HumanSize(float64(w.bytes)), w.pulls)
}

func (w *demoWay) median() time.Duration {
	return slices.Sorted(slices.Values(w.times))[len(w.times)/2]
}

// demoRun measures ways to deploy one recipe on two hosts: one has hubcache as its mirror, and
// the other pulls from Docker Hub itself.
type demoRun struct {
	*deployLab
	t                  *testing.T
	mirrored, plain    swarmHost
	direct, cold, warm demoWay
}

// measure deploys the recipe and records what it took.
func (d *demoRun) measure(w *demoWay, h swarmHost) {
	d.t.Helper()
	d.hub.ResetLedger()
	used := d.hub.Used("") + d.hub.Used(labUser)
	took := h.deploy(d.recipe)
	w.times = append(w.times, took)
	w.bytes, w.pulls = d.hub.Ledger().BlobBytes(), d.hub.Used("")+d.hub.Used(labUser)-used
	progress("  %-26s %5.1f s, %8s from Docker Hub, %d pulls counted\n", w.name, took.Seconds(), units.HumanSize(float64(w.bytes)), w.pulls)
}

// progress prints to the terminal when the demo was requested with -demo.
func progress(format string, args ...any) {
	if *demo {
		fmt.Fprintf(os.Stderr, format, args...)
	}
}

// TestDemo measures how long a deploy takes without hubcache, with an empty hubcache, and with
// hubcache after the images were pruned from the host. `make demo` runs it five times and prints
// the results.
func TestDemo(t *testing.T) {
	runs := 1
	if *demo {
		runs = 5
	}
	progress("Starting a fake Docker Hub, hubcache and two Docker hosts.\n")
	d := &demoRun{deployLab: newDeployLab(t, hubtest.Options{}), t: t}
	d.direct.name, d.cold.name, d.warm.name = "without hubcache", "hubcache, empty", "hubcache, images pruned"
	d.mirrored, d.plain = d.host(t), d.plainHost(t)
	for run := range runs {
		progress("\nRun %d of %d: docker stack deploy\n", run+1, runs)
		d.once()
	}
	table := d.table()
	progress("\n%s", table)
	if *demoDoc != "" {
		writeBetween(t, *demoDoc, demoMarker, "\n"+table+"\n")
	}
}

// once deploys in each way, with a prune after each.
func (d *demoRun) once() {
	d.t.Helper()
	d.measure(&d.direct, d.plain)
	d.plain.remove(imagePrune...)
	d.cache.Empty()
	d.measure(&d.cold, d.mirrored)
	d.checkFetchedOnce(d.t)
	d.mirrored.remove(imagePrune...)
	d.measure(&d.warm, d.mirrored)
	if again := upstreamGETs(d.hub); len(again) > 0 {
		d.t.Errorf("after a prune these requests reached the Hub:\n%s", again)
	}
	d.mirrored.remove(systemPrune...)
}

// plainHost starts a daemon that has no mirror and can reach Docker Hub.
func (lab *deployLab) plainHost(t *testing.T) swarmHost {
	t.Helper()
	d := dockertest.Start(t, dockertest.Options{Network: lab.network, Env: []string{"HTTPS_PROXY=" + lab.proxy.URL, "SSL_CERT_FILE=" + lab.ca}})
	d.SwarmInit()
	return swarmHost{d, t}
}

// table is the results as a Markdown table that is readable on a terminal too.
func (d *demoRun) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Seconds from `docker stack deploy` until all 3 services run: %d images, %d layers, %s; Docker Hub %v away, %s/s a connection; Docker %s on %d CPUs; %d runs.\n\n",
		len(d.recipe.images), d.recipe.layers, units.HumanSize(float64(d.recipe.bytes)), hubLatency, units.HumanSize(hubSpeed),
		d.plain.Docker("version", "--format", "{{.Server.Version}}"), runtime.NumCPU(), len(d.direct.times))
	fmt.Fprintf(&b, "| %-26s | %7s | %6s | %6s | %15s | %5s |\n", "", "median", "min", "max", "from Docker Hub", "pulls")
	fmt.Fprintf(&b, "|:%s|%s:|%s:|%s:|%s:|%s:|\n", strings.Repeat("-", 27), strings.Repeat("-", 8), strings.Repeat("-", 7),
		strings.Repeat("-", 7), strings.Repeat("-", 16), strings.Repeat("-", 6))
	for _, w := range []*demoWay{&d.direct, &d.cold, &d.warm} {
		b.WriteString(w.row())
	}
	ratio := func(w *demoWay) float64 { return d.direct.median().Seconds() / w.median().Seconds() }
	fmt.Fprintf(&b, "\nAfter a prune the deploy is %.1f times as fast through hubcache as without it; with hubcache empty, %.1f times.\n", ratio(&d.warm), ratio(&d.cold))
	return b.String()
}
