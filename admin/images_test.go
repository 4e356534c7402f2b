package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/inventory"
)

// listing has three images, by name: redis:6, redis:7, and org/app without a tag.
func listing() Options {
	o := idle()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	o.Images = func(context.Context) (*inventory.List, error) {
		return inventory.NewList([]inventory.Image{
			{Repository: "docker.io/org/app", Digest: digest.FromString("app"), MediaType: "m", Size: 30, Shared: 3, LastUse: at.Add(2 * time.Hour)},
			{Repository: "docker.io/library/redis", Tag: "6", Digest: digest.FromString("6"), Size: 10, Complete: true, LastUse: at, Checked: at},
			{Repository: "docker.io/library/redis", Tag: "7", Digest: digest.FromString("7"), Size: 20, Complete: true, Pulls: 5, LastUse: at.Add(time.Hour), Checked: at},
		}, 9), nil
	}
	return o
}

// TestImagesAreListedAsAskedFor: filtered, ordered and in pages.
func TestImagesAreListedAsAskedFor(t *testing.T) {
	app, six, seven := "docker.io/org/app@"+digest.FromString("app").String(), "docker.io/library/redis:6", "docker.io/library/redis:7"
	for _, c := range []struct {
		query string
		want  []string
		total int
		next  string
	}{
		{"", []string{six, seven, app}, 3, ""},
		{"sort=size", []string{app, seven, six}, 3, ""},
		{"sort=last-use", []string{app, seven, six}, 3, ""},
		{"pattern=redis", []string{six, seven}, 2, ""},
		{"pattern=redis:7", []string{seven}, 1, ""},
		{"pattern=nginx", nil, 0, ""},
		{"sort=pulls", []string{seven, six, app}, 3, ""},
		{"prefix=redis:", []string{six, seven}, 2, ""},
		{"prefix=library/redis:7", []string{seven}, 1, ""},
		{"prefix=docker", []string{six, seven, app}, 3, ""},
		{"limit=2", []string{six, seven}, 3, seven},
		{"limit=2&after=" + url.QueryEscape(seven), []string{app}, 3, ""},
		{"limit=3", []string{six, seven, app}, 3, ""},
	} {
		w := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodGet, "/api/v1/images?"+c.query, nil)
		req.Host = "localhost"
		New(listing()).ServeHTTP(w, req)
		var doc Images
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%q: %d %v\n%s", c.query, w.Code, err, w.Body)
		}
		var got []string
		for _, i := range doc.Images {
			got = append(got, i.Reference)
			if i.Reference == seven && i.Pulls != 5 {
				t.Errorf("%d pulls", i.Pulls)
			}
			if (i.Checked == nil) != strings.Contains(i.Reference, "@") {
				t.Errorf("%s: checked %v", i.Reference, i.Checked)
			}
		}
		if !slices.Equal(got, c.want) || doc.Total != c.total || doc.Next != c.next || doc.Other != 9 || doc.Schema != 1 {
			t.Errorf("%q: %v, total %d, next %q, other %d, schema %d; want %v, %d, %q", c.query, got, doc.Total, doc.Next, doc.Other, doc.Schema, c.want, c.total, c.next)
		}
	}
}

// TestImagesRefuseWhatTheyDontUnderstand: each wrong query has its own answer.
func TestImagesRefuseWhatTheyDontUnderstand(t *testing.T) {
	for query, want := range map[string]string{
		"sort=colour": "sort is", "limit=0": "limit is", "limit=x": "limit is", "pattern=[": "pattern:", "after=docker.io/library/redis:8": "not in the list",
	} {
		req := httptest.NewRequest(http.MethodGet, "/api/v1/images?"+query, nil)
		req.Host = "localhost"
		w := httptest.NewRecorder()
		New(listing()).ServeHTTP(w, req)
		if w.Code/100 != 4 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	o := listing()
	o.Images = func(context.Context) (*inventory.List, error) { return nil, errors.New("the index is damaged") }
	req := httptest.NewRequest(http.MethodGet, "/api/v1/images", nil)
	req.Host = "localhost"
	if resp := ask(t, o, req); resp.StatusCode != http.StatusInternalServerError {
		t.Error(resp.Status)
	}
	req.Host = "evil.example"
	if resp := ask(t, listing(), req); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a foreign Host: %s", resp.Status)
	}
}

// TestImagesAreWrittenAsJSON: by hand as by encoding/json, whatever the strings are.
func TestImagesAreWrittenAsJSON(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_900_000, time.FixedZone("", 3600))
	for _, i := range []Image{
		{},
		{Reference: "docker.io/library/redis:7", Digest: "sha256:ab", MediaType: "application/vnd.oci.image.index.v1+json", Bytes: 1 << 40, Shared: -1, Complete: true, Pulls: 9, LastUse: at, Checked: &at},
		{Reference: "r", Pinned: true, Protected: true, LastUse: at.UTC()},
		{MediaType: `a"b\c<d>&` + "\n\u00e9\u2028\xff"},
	} {
		want, err := json.Marshal(i)
		if err != nil {
			t.Fatal(err)
		}
		if got := appendImage([]byte("x"), i); string(got) != "x"+string(want) {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}
