// Package dashboard is the page of the admin listener: what the cache does and has, for people. All
// of it is made on the server, and can be read without JavaScript; the script only reads the page
// again when something has changed, and uses the verbs of the API.
package dashboard

import (
	"bytes"
	"context"
	"embed"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"strconv"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/inventory"
)

// Options is what New needs. All functions must be safe for concurrent use.
type Options struct {
	Stats   func() admin.Stats
	History func() admin.History
	Images  func(context.Context) (*inventory.List, error) // in a list that isn't changed
	Pinned  func() (map[string]bool, error)                // whole references of pinned images; nil: images can't be pinned
	Verbs   func(*http.Request) admin.Verbs                // whether the page may change the cache
	Purge   bool                                           // the API can remove images
	Warm    bool                                           // the API can fetch images
	Log     *slog.Logger
}

// Dashboard is the handler of / and /assets/. It is safe for concurrent use.
type Dashboard struct {
	o      Options
	images lister
}

// New returns a Dashboard. It makes no request of its own: what it shows is asked for when somebody
// looks at it.
func New(o Options) *Dashboard {
	return &Dashboard{o: o, images: lister{list: o.Images, stored: func() int64 { return o.Stats().Store.Bytes }, log: o.Log}}
}

//go:embed page.html style.css app.js icon.svg
var files embed.FS

// assets are the types of the files that the page loads.
var assets = map[string]string{"style.css": "text/css; charset=utf-8", "app.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"}

var tmpl = template.Must(template.New("page.html").Funcs(template.FuncMap{
	"size": size, "ago": ago, "percent": percent, "plural": plural, "utc": utc, "familiar": familiar,
}).ParseFS(files, "page.html"))

// policy lets the page load what is its own and nothing else, and lets no page have it in a frame.
const policy = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"

// ServeHTTP answers a GET or HEAD.
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if req.URL.Path != "/" {
		d.serveAsset(w, req)
		return
	}
	// part=live is the page without its list of images, and part=images the list alone.
	name := "page.html"
	switch part := req.URL.Query().Get("part"); part {
	case "live", "images":
		name = part
	}
	p := d.view(req, name)
	var out bytes.Buffer
	if err := tmpl.ExecuteTemplate(&out, name, p); err != nil {
		d.o.Log.Error("the dashboard can't be made", "error", err)
		http.Error(w, "the dashboard can't be made; the log says why", http.StatusInternalServerError)
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(out.Len()))
	if req.Method != http.MethodHead {
		w.Write(out.Bytes())
	}
}

func (d *Dashboard) serveAsset(w http.ResponseWriter, req *http.Request) {
	name := path.Base(req.URL.Path)
	kind, ok := assets[name]
	if !ok {
		http.Error(w, "no such file", http.StatusNotFound)
		return
	}
	b, err := fs.ReadFile(files, name)
	if err != nil { // it was embedded
		panic(err)
	}
	w.Header().Set("Content-Type", kind)
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(b))
}
