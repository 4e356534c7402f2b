package admin

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/mux"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/transfer"
)

// exportStalled is how long whoever gets an export may take for one piece of it.
const exportStalled = time.Minute

// export answers GET /api/v1/export/<reference> with a tar of images: that of the path, those of the
// parameters "reference", and those of "listed", which a file names and not a person; these must
// not be private. What is cached may be private, so only those are answered who may use a verb.
//
// When something goes wrong after the beginning, the answer is shorter than its Content-Length, and
// the log says why.
func (a *admin) export(w http.ResponseWriter, req *http.Request) error {
	q := req.URL.Query()
	var images []transfer.Wanted
	add := func(texts []string, listed bool) error {
		for _, text := range texts {
			ref, err := name.ParseReference(text)
			if err != nil {
				return fault{http.StatusBadRequest, err}
			}
			images = append(images, transfer.Wanted{Reference: ref, Listed: listed})
		}
		return nil
	}
	named := q["reference"]
	if path := mux.Vars(req)["reference"]; path != "" {
		named = append([]string{path}, named...)
	}
	if err := errors.Join(add(named, false), add(q["listed"], true)); err != nil {
		return err
	}
	if len(images) == 0 {
		return faultf(http.StatusBadRequest, "no image is named")
	}
	archive, err := transfer.NewArchive(a.Cache, images)
	switch {
	case errors.Is(err, transfer.ErrNotCached):
		for _, i := range images {
			if err := a.unserved(i.Reference); err != nil {
				return err
			}
		}
		return faultf(http.StatusNotFound, "%w: pull it, or fetch it with 'hubcache warm'", err)
	case errors.Is(err, transfer.ErrNotComplete):
		return faultf(http.StatusConflict, "%w: fetch the rest with 'hubcache warm'", err)
	case errors.Is(err, transfer.ErrPrivate):
		return faultf(http.StatusConflict, "%w: a private image is exported only if the command names it itself", err)
	case err != nil:
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Length", strconv.FormatInt(archive.Size(), 10))
	if err := archive.Write(req.Context(), patient{w}); err != nil {
		a.Log.Error("an export broke off", "who", asker(req), "error", err)
	}
	return nil
}

// patient is an answer whose every piece has to be taken in time.
type patient struct{ http.ResponseWriter }

func (p patient) Write(b []byte) (int, error) {
	// Not every connection has deadlines; then nobody waits for it but this request.
	_ = http.NewResponseController(p.ResponseWriter).SetWriteDeadline(time.Now().Add(exportStalled))
	return p.ResponseWriter.Write(b)
}
