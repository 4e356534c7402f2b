package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/admin"
)

func TestTableOfImages(t *testing.T) {
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		doc  admin.Images
		want string
	}{
		{admin.Images{Images: []admin.Image{}}, "0 images; 0B of the cache belong to no image\n"},
		{admin.Images{Total: 2, Other: 5 << 20, Images: []admin.Image{
			{Reference: "docker.io/library/redis:7", Bytes: 42 << 20, Shared: 30 << 20, Complete: true, Pinned: true, Protected: true, Pulls: 17, LastUse: now.Add(-2 * time.Hour)},
			{Reference: "docker.io/org/app@sha256:" + strings.Repeat("0a", 32), Bytes: 1 << 30, LastUse: now.Add(-50 * time.Hour)},
			{Reference: "docker.io/org/app:1", Complete: true, Pinned: true, LastUse: now.Add(-50 * time.Hour)},
		}}, `IMAGE                        SIZE   SHARED  STATE     PINNED   PULLS  LAST USE
redis:7                      42MiB  30MiB   complete  yes      17     2 hours ago
org/app@sha256:0a0a0a0a0a0a  1GiB   0B      partial   no       0      2 days ago
org/app:1                    0B     0B      complete  no room  0      2 days ago
2 images; 5MiB of the cache belong to no image
`},
	} {
		answer, err := json.MarshalIndent(c.doc, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		table := newImageTable(now)
		doc, err := readImages(bytes.NewReader(answer), table.add)
		if err != nil || doc.Total != c.doc.Total || doc.Other != c.doc.Other {
			t.Fatalf("%+v, %v", doc, err)
		}
		var out strings.Builder
		if err := table.print(&out, doc); err != nil {
			t.Fatal(err)
		}
		if out.String() != c.want {
			t.Errorf("got\n%s\nwant\n%s", out.String(), c.want)
		}
	}
}

// TestListThatEndsEarly is an error, wherever it ends, and so is what is no list; what a newer server
// adds isn't.
func TestListThatEndsEarly(t *testing.T) {
	const whole = `{"schema":1,"new":[{}],"images":[{"reference":"docker.io/library/redis:7"}],"total":1,"other_bytes":2}`
	n := 0
	doc, err := readImages(strings.NewReader(whole), func(admin.Image) { n++ })
	if err != nil || n != 1 || doc.Total != 1 || doc.Other != 2 {
		t.Errorf("%d images, %+v, %v", n, doc, err)
	}
	for at := range len(whole) {
		if _, err := readImages(strings.NewReader(whole[:at]), func(admin.Image) {}); err == nil {
			t.Errorf("no error for %s", whole[:at])
		}
	}
	for _, text := range []string{`[]`, `{"images":{}}`, `"x"`, `<html>`} {
		if _, err := readImages(strings.NewReader(text), func(admin.Image) {}); err == nil {
			t.Errorf("no error for %s", text)
		}
	}
}
