package main

import (
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
		{admin.Images{}, "0 images; 0B of the cache belong to no image\n"},
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
		var out strings.Builder
		if err := printImages(&out, c.doc, now); err != nil {
			t.Fatal(err)
		}
		if out.String() != c.want {
			t.Errorf("got\n%s\nwant\n%s", out.String(), c.want)
		}
	}
}
