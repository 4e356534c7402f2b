package admin

import (
	"cmp"
	"encoding/json"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hubcache/hubcache/inventory"
)

// Images is the document of GET /api/v1/images, in the order that was asked for.
type Images struct {
	Schema int     `json:"schema"`
	Images []Image `json:"images"`
	Total  int     `json:"total"`          // number of images that match, listed here or not
	Other  int64   `json:"other_bytes"`    // bytes in the cache that belong to no image
	Next   string  `json:"next,omitempty"` // what to ask for as "after" to see more; absent: that is all
}

// Image is one image of the cache. Sizes are bytes on disk.
type Image struct {
	Reference string     `json:"reference"` // whole: docker.io/library/redis:7, or with @ and the digest
	Digest    string     `json:"digest"`    // of its index, or of its one manifest
	MediaType string     `json:"media_type"`
	Bytes     int64      `json:"bytes"`        // all that is cached of it
	Shared    int64      `json:"shared_bytes"` // the part of it that other images need too
	Complete  bool       `json:"complete"`     // every platform that is cached is there as a whole
	Pinned    bool       `json:"pinned"`       // a pin names this image, by this tag, by another or by its digest
	Protected bool       `json:"protected"`    // it is pinned and isn't evicted; false also for a pin that doesn't fit any more
	Pulls     int64      `json:"pulls"`        // how often it was asked for, by its tag, or without one by its digest
	LastUse   time.Time  `json:"last_use"`
	Checked   *time.Time `json:"checked"` // when the upstream last said what the tag names; null without a tag
}

// orders are the values of "sort"; the first is the default. Equal ones are ordered by name.
var orders = map[string]func(a, b inventory.Image) int{
	"name":     func(a, b inventory.Image) int { return 0 },
	"last-use": func(a, b inventory.Image) int { return b.LastUse.Compare(a.LastUse) },  // newest first
	"size":     func(a, b inventory.Image) int { return cmp.Compare(b.Size, a.Size) },   // largest first
	"pulls":    func(a, b inventory.Image) int { return cmp.Compare(b.Pulls, a.Pulls) }, // most first
}

// images answers with the images that match "pattern", and whose references begin with "prefix",
// whole or as people write them; ordered by "sort", at most "limit" of them, after the reference
// "after".
func (a *admin) images(w http.ResponseWriter, req *http.Request) {
	q := req.URL.Query()
	pattern, prefix, limit := q.Get("pattern"), q.Get("prefix"), 0
	if _, err := path.Match(pattern, ""); err != nil {
		refuse(http.StatusBadRequest, "pattern: "+err.Error()).ServeHTTP(w, req)
		return
	}
	order, ok := orders[cmp.Or(q.Get("sort"), "name")]
	if !ok {
		refuse(http.StatusBadRequest, "sort is name, last-use, size or pulls").ServeHTTP(w, req)
		return
	}
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			refuse(http.StatusBadRequest, "limit is a number from 1 on").ServeHTTP(w, req)
			return
		}
		limit = n
	}
	all, err := a.Images(req.Context())
	if err != nil {
		refuse(http.StatusInternalServerError, err.Error()).ServeHTTP(w, req)
		return
	}
	var found []*inventory.Image // of a list that others read, too
	for at := range all.Images {
		if i := &all.Images[at]; i.Match(pattern) && i.HasPrefix(prefix) {
			found = append(found, i)
		}
	}
	slices.SortStableFunc(found, func(a, b *inventory.Image) int { return order(*a, *b) })
	doc := Images{Schema: Schema, Total: len(found), Other: all.Other, Images: []Image{}}
	if after := q.Get("after"); after != "" {
		at := slices.IndexFunc(found, func(i *inventory.Image) bool { return i.Reference() == after })
		if at < 0 {
			refuse(http.StatusNotFound, after+" is not in the list any more; begin again").ServeHTTP(w, req)
			return
		}
		found = found[at+1:]
	}
	if limit > 0 && len(found) > limit {
		found = found[:limit]
		doc.Next = found[limit-1].Reference()
	}
	writeImages(w, doc, found)
}

// writeImages writes doc with these images, one after the other: there may be 100,000.
func writeImages(w http.ResponseWriter, doc Images, images []*inventory.Image) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	frame, err := json.MarshalIndent(doc, "", "  ")
	if err != nil { // it has nothing that could fail
		panic(err)
	}
	head, tail, _ := strings.Cut(string(frame), `"images": []`)
	write := func(s string) { w.Write([]byte(s)) } // an error means that the client has left
	write(head + `"images": [`)
	for n, i := range images {
		if n > 0 {
			write(",")
		}
		b, err := json.Marshal(imageOf(*i))
		if err != nil {
			panic(err)
		}
		write("\n    " + string(b))
	}
	if len(images) > 0 {
		write("\n  ")
	}
	write("]" + tail + "\n")
}

func imageOf(i inventory.Image) Image {
	out := Image{
		Reference: i.Reference(), Digest: i.Digest.String(), MediaType: i.MediaType,
		Bytes: i.Size, Shared: i.Shared, Complete: i.Complete, Pulls: i.Pulls, Pinned: i.Pinned, Protected: i.Protected, LastUse: i.LastUse,
	}
	if i.Tag != "" {
		out.Checked = &i.Checked
	}
	return out
}
