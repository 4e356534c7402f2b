//go:build integration

package integration

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

var (
	clientsAll = flag.Bool("clients", false, "TestClients: run the whole matrix")
	clientsDoc = flag.String("clients.doc", "", "TestClients: write the table into this `file`, between its two markers")
)

// clientsMarker is the line before and after the table in the document.
const clientsMarker = "<!-- written by make clients -->\n"

// situation is one column of the matrix.
type situation struct {
	name string
	play func(r *matrixRow) string // what the cell says; it fails the row's test if something is wrong
}

// situations are played in this order, with one client and one cache.
var situations = []situation{
	{"cold", (*matrixRow).cold},
	{"warm", (*matrixRow).warm},
	{"Hub throttles", (*matrixRow).throttled},
	{"CDN cuts", (*matrixRow).cut},
	{"Hub hangs", (*matrixRow).hanging},
	{"cache down", (*matrixRow).down},
	{"cache back", (*matrixRow).back},
	{"second registry", (*matrixRow).second},
}

// matrixRow is one client with the images that it pulls.
type matrixRow struct {
	t      *testing.T
	lab    *registriesLab
	kind   pullerKind
	client puller

	app, tool, broken, other labImage
}

// TestClients plays every client through every situation, with a real hubcache, and writes the table.
// make clients runs it.
func TestClients(t *testing.T) {
	if !*clientsAll {
		t.Skip("it takes many minutes: make clients runs it")
	}
	lab := newRegistriesLab(t)
	var table strings.Builder
	fmt.Fprintf(&table, "| client | version | pointed at the cache by |")
	for _, s := range situations {
		fmt.Fprintf(&table, " %s |", s.name)
	}
	fmt.Fprintf(&table, "\n|---|---|---|%s\n", strings.Repeat("---|", len(situations)))
	for i, kind := range pullerKinds() {
		version := kind.version(t)
		fmt.Fprintf(&table, "| %s | %s | %s |", kind.name, version, kind.how)
		t.Run(kind.name+" "+version, func(t *testing.T) {
			r := newMatrixRow(t, lab, kind, fmt.Sprintf("%02d", i))
			for _, s := range situations {
				cell := r.run(s)
				fmt.Fprintf(&table, " %s |", cell)
				t.Logf("%s: %s", s.name, cell)
			}
		})
		table.WriteString("\n")
	}
	t.Logf("\n%s", &table)
	if *clientsDoc != "" {
		head := fmt.Sprintf("\nOn %s, %d CPUs, %s.\n\n", time.Now().Format(time.DateOnly), runtime.NumCPU(), runtime.Version())
		writeBetween(t, *clientsDoc, clientsMarker, head+table.String()+"\n")
	}
}

// newMatrixRow starts a client, with an empty cache and images of its own.
func newMatrixRow(t *testing.T, lab *registriesLab, kind pullerKind, tag string) *matrixRow {
	t.Helper()
	lab.cache.Empty()
	r := &matrixRow{t: t, lab: lab, kind: kind,
		app:    lab.image(t, "docker.io", "library/app", tag, 2),
		tool:   lab.image(t, "docker.io", "acme/tool", tag, 1), // not an official image: its tag is checked on each pull
		broken: lab.image(t, "docker.io", "library/broken", tag, 2),
		other:  lab.image(t, "ghcr.io", "org/app", tag, 2),
	}
	r.client = kind.start(t, lab, lab.ownWay())
	return r
}

// run plays one situation and returns the cell.
func (r *matrixRow) run(s situation) (cell string) {
	failed := r.t.Failed()
	cell = s.play(r)
	r.client.forget(r.t)
	if r.t.Failed() && !failed {
		return "**no**"
	}
	return cell
}

// pull makes the client pull, and returns how long that took. A pull that fails fails the test.
func (r *matrixRow) pull(img labImage) time.Duration {
	r.t.Helper()
	r.lab.resetLedgers()
	start := time.Now()
	if err := r.client.pull(img); err != nil {
		r.t.Errorf("%v", err)
	}
	return time.Since(start)
}

// throughCache is pull of an image that must come through the cache.
func (r *matrixRow) throughCache(img labImage) string {
	r.t.Helper()
	took := r.pull(img)
	if direct := r.lab.direct(img.registry); len(direct) > 0 {
		r.t.Errorf("the client asked %s itself:\n%s", img.registry, direct)
	}
	return seconds(took)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// cold pulls with an empty cache. No blob is fetched twice.
func (r *matrixRow) cold() string {
	cell := r.throughCache(r.app)
	ledger := r.lab.hub.Ledger()
	if got, size := ledger.BlobBytes(), r.app.Size(); got == 0 || got > size {
		r.t.Errorf("%d bytes of an image of %d were fetched:\n%s", got, size, ledger)
	}
	return cell
}

// warm pulls again. Nothing is asked upstream.
func (r *matrixRow) warm() string {
	cell := r.throughCache(r.app)
	if ledger := r.lab.hub.Ledger(); len(ledger) > 0 {
		r.t.Errorf("a warm pull reached the Hub:\n%s", ledger)
	}
	return cell
}

// whileHub pulls an image that is cached while the Hub fails.
func (r *matrixRow) whileHub(match hubtest.Match, fault hubtest.Fault) string {
	r.pull(r.tool)
	r.client.forget(r.t)
	rule := r.lab.hub.Inject(match, fault)
	cell := r.throughCache(r.tool)
	if rule.Hits() == 0 {
		r.t.Error("no request had the fault")
	}
	rule.Remove()
	rule.Release()
	r.lab.cache.Restart() // without the pauses that the fault has caused
	return cell
}

func (r *matrixRow) throttled() string {
	return r.whileHub(hubtest.Match{Kind: "manifests"}, hubtest.TooManyRequests("Retry-After: 300"))
}

func (r *matrixRow) hanging() string {
	return r.whileHub(hubtest.Match{Face: hubtest.Registry}, hubtest.Hang())
}

// cut pulls an image that isn't cached while the CDN breaks off.
func (r *matrixRow) cut() string {
	rule := r.lab.hub.Inject(hubtest.Match{Face: hubtest.CDN, Times: 3}, hubtest.CutAfter(300<<10))
	defer rule.Remove()
	cell := r.throughCache(r.broken)
	if rule.Hits() == 0 {
		r.t.Error("no request had the fault")
	}
	return cell
}

// down pulls while the cache doesn't run: the client asks the registry itself.
func (r *matrixRow) down() string {
	r.lab.cache.Stop()
	if r.kind.direct {
		start := time.Now()
		if err := r.client.pull(r.app); err == nil {
			r.t.Error("a pull from a cache that doesn't run succeeded")
		}
		return "fails, " + seconds(time.Since(start))
	}
	took := r.pull(r.app)
	if direct := r.lab.direct("docker.io"); len(direct) == 0 {
		r.t.Error("the image came from nowhere")
	}
	return seconds(took)
}

// back pulls when the cache runs again.
func (r *matrixRow) back() string {
	r.lab.cache.Start()
	cell := r.throughCache(r.app)
	if got := r.lab.hub.Ledger().BlobBytes(); got > 0 {
		r.t.Errorf("%d bytes were fetched again", got)
	}
	return cell
}

// second pulls from another registry, cold and warm.
func (r *matrixRow) second() string {
	cold := r.throughCache(r.other)
	if r.lab.ghcr.Ledger().BlobBytes() == 0 {
		r.t.Error("the image came from nowhere")
	}
	r.client.forget(r.t)
	warm := r.throughCache(r.other)
	if again := upstreamGETs(r.lab.ghcr); len(again) > 0 {
		r.t.Errorf("a warm pull reached ghcr.io:\n%s", again)
	}
	return cold + ", warm " + warm
}

// writeBetween replaces the text between the two markers of a document.
func writeBetween(t *testing.T, path, marker, text string) {
	t.Helper()
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	parts := bytes.Split(doc, []byte(marker))
	if len(parts) != 3 {
		t.Fatalf("%s must have the line %q twice", path, strings.TrimSpace(marker))
	}
	parts[1] = []byte(text)
	if err := os.WriteFile(path, bytes.Join(parts, []byte(marker)), 0o644); err != nil {
		t.Fatal(err)
	}
}
