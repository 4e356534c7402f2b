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
	Total  int     `json:"total"`       // number of images that match, listed here or not
	Other  int64   `json:"other_bytes"` // bytes in the cache that belong to no image
	// Waiting are the tags that match and name what clients don't get yet, cached or not.
	Waiting []Waiting `json:"waiting,omitempty"`
	Next    string    `json:"next,omitempty"` // what to ask for as "after" to see more; absent: that is all
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
	sort := cmp.Or(q.Get("sort"), inventory.Orders[0])
	if !slices.Contains(inventory.Orders, sort) {
		refuse(http.StatusBadRequest, "sort is "+strings.Join(inventory.Orders[:3], ", ")+" or "+inventory.Orders[3]).ServeHTTP(w, req)
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
	found, _ := all.Sorted(sort)
	if pattern != "" || prefix != "" {
		found = slices.DeleteFunc(found, func(n int32) bool {
			i := all.At(int(n))
			return !i.Match(pattern) || !i.HasPrefix(prefix)
		})
	}
	doc := Images{Schema: Schema, Total: len(found), Other: all.Other, Images: []Image{}, Waiting: a.waiting(pattern, prefix)}
	if after := q.Get("after"); after != "" {
		at := slices.IndexFunc(found, func(n int32) bool { return all.At(int(n)).Reference() == after })
		if at < 0 {
			refuse(http.StatusNotFound, after+" is not in the list any more; begin again").ServeHTTP(w, req)
			return
		}
		found = found[at+1:]
	}
	if limit > 0 && len(found) > limit {
		found = found[:limit]
		doc.Next = all.At(int(found[limit-1])).Reference()
	}
	writeImages(w, doc, all, found)
}

// writeImages writes doc with these images of a list, in parts: there may be 100,000.
func writeImages(w http.ResponseWriter, doc Images, all *inventory.List, places []int32) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	frame, err := json.MarshalIndent(doc, "", "  ")
	if err != nil { // it has nothing that could fail
		panic(err)
	}
	head, tail, _ := strings.Cut(string(frame), `"images": []`)
	out := append(make([]byte, 0, writeAtOnce+4<<10), head+`"images": [`...)
	for n, at := range places {
		if n > 0 {
			out = append(out, ',')
		}
		out = appendImage(append(out, "\n    "...), imageOf(all.At(int(at))))
		if len(out) >= writeAtOnce {
			if _, err := w.Write(out); err != nil { // the client has left
				return
			}
			out = out[:0]
		}
	}
	if len(places) > 0 {
		out = append(out, "\n  "...)
	}
	w.Write(append(out, "]"+tail+"\n"...))
}

// writeAtOnce, in bytes, is how much of a list is written together.
const writeAtOnce = 64 << 10

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

// appendImage appends an image as json.Marshal writes it, which takes a third of a second longer for
// 100,000 of them.
func appendImage(b []byte, i Image) []byte {
	for _, text := range []string{i.Reference, i.Digest, i.MediaType} {
		if !plain(text) {
			all, err := json.Marshal(i)
			if err != nil { // as above
				panic(err)
			}
			return append(b, all...)
		}
	}
	b = append(append(b, `{"reference":"`...), i.Reference...)
	b = append(append(b, `","digest":"`...), i.Digest...)
	b = append(append(b, `","media_type":"`...), i.MediaType...)
	b = strconv.AppendInt(append(b, `","bytes":`...), i.Bytes, 10)
	b = strconv.AppendInt(append(b, `,"shared_bytes":`...), i.Shared, 10)
	b = strconv.AppendBool(append(b, `,"complete":`...), i.Complete)
	b = strconv.AppendBool(append(b, `,"pinned":`...), i.Pinned)
	b = strconv.AppendBool(append(b, `,"protected":`...), i.Protected)
	b = strconv.AppendInt(append(b, `,"pulls":`...), i.Pulls, 10)
	b = i.LastUse.AppendFormat(append(b, `,"last_use":"`...), time.RFC3339Nano)
	if i.Checked == nil {
		return append(b, `","checked":null}`...)
	}
	b = i.Checked.AppendFormat(append(b, `","checked":"`...), time.RFC3339Nano)
	return append(b, `"}`...)
}

// plain reports whether a text is the same in JSON.
func plain(text string) bool {
	for n := range len(text) {
		if c := text[n]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}
