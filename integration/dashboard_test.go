//go:build integration

package integration

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// screenshots is a folder for what the browser shows, for docs/use/dashboard.md and for whoever
// changes the page: look at it.
var screenshots = flag.String("screenshots", "", "`folder` for pictures of the dashboard")

const dashboardToken = "the-token-of-the-dashboard"

// dashboardLab is a server with a Hub, and a browser that looks at its dashboard.
type dashboardLab struct {
	*browser
	t      *testing.T
	hub    *hubtest.Hub
	server *server
	images []*hubtest.Image
}

// TestDashboardInABrowser looks at the page in a real browser, empty, full, under load and with the
// upstream down, and uses every control. There must be no error in the console, nothing that the
// page's policy forbids, and no part that doesn't fit a narrow screen.
func TestDashboardInABrowser(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(dashboardToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := &dashboardLab{t: t, hub: hub, browser: startBrowser(t)}
	l.server = startServer(t, serverOptions{Hub: hub, Env: []string{"HUBCACHE_ADMIN_TOKEN_FILE=" + token}, Args: []string{"--budget", "256MiB", "--min-free", "0"}})
	l.empty()
	l.fill()
	stop := l.load()
	l.live()
	l.table()
	l.pins()
	l.purge()
	l.warm()
	l.keyboard()
	l.look("full")
	stop()
	l.withoutScript()
	l.down()
	l.atTheEnd()
}

func (l *dashboardLab) page(query string) string { return "http://" + l.server.Admin + "/" + query }

// look takes pictures in light and dark, wide and narrow, and checks that nothing sticks out.
func (l *dashboardLab) look(name string) {
	l.t.Helper()
	for _, width := range []int64{1280, 360} {
		for _, scheme := range []string{"light", "dark"} {
			l.show(width, scheme)
			if got := eval[int](l.browser, "document.documentElement.scrollWidth"); got > int(width) {
				l.t.Errorf("%s: the page is %d wide on a screen of %d", name, got, width)
			}
			if *screenshots != "" {
				l.picture(filepath.Join(*screenshots, fmt.Sprintf("%s-%d-%s.png", name, width, scheme)))
			}
		}
	}
	l.show(1280, "light")
}

// empty: a new cache says what to do.
func (l *dashboardLab) empty() {
	l.open(l.page(""))
	l.until("the page says that nothing is cached", `text("main").includes("Nothing cached yet") && text("#connection").includes("live")`)
	l.look("empty")
}

// fill pulls images of several repositories, and asks for some that don't exist.
func (l *dashboardLab) fill() {
	names := []string{"library/redis", "library/postgres", "library/nginx", "library/alpine", "grafana/grafana", "prom/prometheus", "an-organisation/an-application-with-a-long-name"}
	var all sync.WaitGroup
	for n := range 60 {
		name := names[n%len(names)]
		img := l.hub.AddImage(name, fmt.Sprint("1.", n), hubtest.ImageSpec{Layers: hubtest.Layers(1+n%3, int64(20+n*n/4)<<10)})
		l.images = append(l.images, img)
	}
	gone := l.hub.AddImage("library/goner", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 10<<10)})
	if err := pullImage(l.t.Context(), l.server.URL, gone, ""); err != nil {
		l.t.Error(err)
	}
	for part := range slices.Chunk(l.images, 15) {
		all.Go(func() {
			for _, img := range part {
				if err := pullImage(l.t.Context(), l.server.URL, img, ""); err != nil {
					l.t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for _, path := range []string{"library/redis/manifests/99", "library/none/manifests/1"} {
		if a, err := request(l.t.Context(), "GET", l.server.URL+"/v2/"+path); err != nil || a.Status != 404 {
			l.t.Errorf("%s: %d %v", path, a.Status, err)
		}
	}
}

// load pulls all the time, and has a download that has stopped half way, until stop is called.
func (l *dashboardLab) load() (stop func()) {
	big := l.hub.AddImage("library/big", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 2<<20)})
	layer := big.Manifests[0].Layers[0]
	rule := l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Reference: layer.Digest.String()}, hubtest.StallAfter(64<<10))
	ctx, cancel := context.WithCancel(l.t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		pullImage(ctx, l.server.URL, big, "") // it stalls again and again, and may end
	})
	all.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			pullImage(ctx, l.server.URL, l.images[n%len(l.images)], "") // fails when the test is over
			time.Sleep(20 * time.Millisecond)
		}
	})
	return func() {
		rule.Release()
		cancel()
		all.Wait()
	}
}

// live: without a reload the page shows what happens.
func (l *dashboardLab) live() {
	l.until("the download is shown", `text("[aria-labelledby=inflight-title]").includes("big")`)
	l.until("the images are shown", `text("#images-title").includes("62")`)
	l.until("the failures are shown", `text("[aria-labelledby=failures-title]").includes("redis:99")`)
	was := eval[string](l.browser, `text(".up")`)
	l.until("the figures move", fmt.Sprintf(`text(".up") != %q`, was))
	l.click("#hour-summary")
	l.until("the figures are a table, too", `visible("#hour-table table")`)
	time.Sleep(2 * time.Second) // the page has read itself again
	l.until("what was opened stays open", `visible("#hour-table table")`)
	l.click("#day-summary")
	l.click("#month-summary")
	l.click("#hour-summary")
}

// table: each column sorts, the search finds, and the pages follow each other.
func (l *dashboardLab) table() {
	first := `text(".images tbody tr:first-child th")`
	for _, c := range []struct{ column, first string }{
		{"size", ":1.59"}, {"name", "an-organisation/an-application-with-a-long-name:1."}, {"pulls", ":1."}, {"last-use", ":1."},
	} {
		l.click("#sort-" + c.column)
		l.until("sorted by "+c.column, fmt.Sprintf(`%s.includes(%q) && document.querySelector("#sort-%s").closest("th").hasAttribute("aria-sort")`, first, c.first, c.column))
	}
	l.click("a[rel=next]")
	l.until("the next page", `text(".pages").includes("51 to 62 of 62")`)
	l.click("a[rel=prev]")
	l.until("the page before", `text(".pages").includes("1 to 50 of 62")`)
	l.click("#tiles-summary")
	l.until("the map is a table, too", `visible("#tiles table")`)
	l.typeInto("#q", "redis:1.*\r")
	l.until("a pattern is found", `text(".pages").includes("that match") && [...document.querySelectorAll(".images tbody th")].every((e) => e.textContent.includes("redis:1."))`)
	l.click(".search a.button")
	l.until("all again", `text(".pages").includes("1 to 50 of 62")`)
	l.typeInto("#q", "no-such-image\r")
	l.until("nothing is found", `text("#images").includes("No image matches no-such-image")`)
	eval[string](l.browser, `history.back(), ""`)
	l.until("the browser's way back", `text(".pages").includes("1 to 50 of 62")`)
}

// pins: a control asks for the token, says when it is wrong, and then doesn't ask again.
func (l *dashboardLab) pins() {
	l.click("#sort-size") // an order that pulls don't change
	l.until("sorted by size", `text(".images tbody tr:first-child th").includes(":1.59")`)
	name := strings.TrimSpace(eval[string](l.browser, `text(".images tbody tr:first-child .name")`))
	button := fmt.Sprintf(`button[aria-label$=" %s"]`, name)
	l.click(button + `[data-verb=pin]`)
	l.until("the token is asked for", `visible("#ask-token")`)
	l.look("token")
	l.typeInto("#token", "wrong\r")
	l.until("a wrong token is told", `visible("#ask-token") && text("#token-error").includes("not the right token")`)
	l.click(`#ask-token button[value=""]`)
	l.until("nothing has changed", `!visible("#ask-token") && text("#said").includes("Nothing was changed")`)
	l.click(button + `[data-verb=pin]`)
	l.until("the token is asked for again", `visible("#ask-token")`)
	l.typeInto("#token", dashboardToken+"\r")
	l.until("it is pinned", fmt.Sprintf(`text("#said").includes("is pinned") && visible('%s[data-verb=unpin]') && text(".images").includes("pinned")`, button))
	if got := l.server.Stats().Store.Pins; got != 1 {
		l.t.Errorf("the server has %d pins", got)
	}
	if got := eval[string](l.browser, `JSON.stringify(localStorage) + document.cookie + sessionStorage.length`); got != "{}1" {
		l.t.Errorf("kept in the browser: %s", got)
	}
	l.click(button + `[data-verb=unpin]`)
	l.until("it isn't pinned", fmt.Sprintf(`text("#said").includes("no longer pinned") && visible('%s[data-verb=pin]')`, button))
	if got := l.server.Stats().Store.Pins; got != 0 {
		l.t.Errorf("the server has %d pins", got)
	}
	for _, want := range []string{`"path":"/api/v1/pins/`, `"status":401`, `"status":200`} {
		if !strings.Contains(l.server.Log(), want) {
			l.t.Errorf("the log has no %s", want)
		}
	}
	if strings.Contains(l.server.Log(), dashboardToken) {
		l.t.Error("the log has the token")
	}
}

// purge: a control says what it would do, and does it when that is agreed to.
func (l *dashboardLab) purge() {
	l.typeInto("#q", "goner\r")
	l.until("the image is found", `text(".pages").includes("1 to 1 of 1 ")`)
	l.click("button[data-verb=purge]")
	l.until("the question says what becomes free", `visible("#ask-purge") && text("#purge-what").includes("KiB become free")`)
	l.click(`#ask-purge button[value=""]`)
	l.until("the question is gone", `!visible("#ask-purge")`)
	l.click("button[data-verb=purge]")
	l.until("the question comes again", `visible("#ask-purge")`)
	l.click("#ask-purge button[value=ok]")
	l.until("the image is gone", `text("#said").includes("was removed") && text("#images").includes("No image matches goner")`)
	l.click("#images .none a")
	l.until("the others stay", `text("#images-title").includes("61")`)
}

// warm: an image is fetched, and one that doesn't exist is told.
func (l *dashboardLab) warm() {
	l.typeInto("#warm-reference", "goner:1\r")
	l.until("the image is cached", `text("#said").includes("goner:1 is cached") && text("#images-title").includes("62")`)
	l.typeInto("#warm-reference", "no-such-image:1\r")
	l.until("what went wrong is told", `document.querySelector("#said").classList.contains("bad") && !text("#said").includes("is cached")`)
}

// keyboard: the focus goes through the page as the eye does.
func (l *dashboardLab) keyboard() {
	l.open(l.page(""))
	l.until("the page is there", `text("#images-title").includes("62")`)
	var got []string
	for range 12 {
		l.key("\t")
		got = append(got, eval[string](l.browser, `document.activeElement.id || document.activeElement.className || document.activeElement.tagName`))
	}
	want := []string{"skip", "hour-summary", "day-summary", "month-summary", "failures-list", "q", "BUTTON", "warm-reference"}
	if !slices.Equal(got[:len(want)], want) {
		l.t.Errorf("the focus goes %v, want %v", got, want)
	}
	if at, then := slices.Index(got, "tiles-summary"), slices.Index(got, "sort-name"); at < 0 || then < at {
		l.t.Errorf("the focus goes %v", got)
	}
	if !eval[bool](l.browser, `document.querySelectorAll("button, a, input, summary").length > 20 && [...document.querySelectorAll("button, a, input, svg[role=img]")].every((e) => e.textContent.trim() || e.ariaLabel || e.labels && e.labels.length || e.type == "hidden")`) {
		l.t.Error("a control or a picture has no name")
	}
}

// withoutScript: the page has all that it has with it.
func (l *dashboardLab) withoutScript() {
	l.script(false)
	l.open(l.page("?q=redis&sort=size"))
	l.script(true) // to ask what is there; that of the page hasn't run
	l.until("all is there", `text("#images").includes("that match") && text(".up").includes("served") && !visible("button[data-verb]") && !document.documentElement.classList.contains("js")`)
}

// down: with the upstream down the page says so, and what clients didn't get.
func (l *dashboardLab) down() {
	l.open(l.page(""))
	l.hub.Close()
	for n := range 10 {
		request(l.t.Context(), "GET", fmt.Sprintf("%s/v2/library/absent/manifests/%d", l.server.URL, n))
	}
	l.until("the page says that the upstream is down", `visible(".alert.down") && text("[aria-labelledby=failures-title]").includes("absent")`)
	l.look("down")
}

// atTheEnd: a server that has stopped is told, and one that is back is followed again.
func (l *dashboardLab) atTheEnd() {
	l.check() // what comes now are failed requests
	l.server.Stop()
	l.until("the page says that it isn't connected", `text("#connection").includes("not connected")`)
	l.server.Start()
	l.until("the page is live again", `text("#connection").includes("live")`)
	l.until("the history has survived", `visible(".chart .served")`)
}
