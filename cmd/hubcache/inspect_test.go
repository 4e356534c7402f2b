package main

import (
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/admin"
)

// TestInspectedImage: what a manifest says of itself can't write to the terminal.
func TestInspectedImage(t *testing.T) {
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	arrived := now.Add(-26 * time.Hour)
	one, two := "sha256:"+strings.Repeat("0a", 32), "sha256:"+strings.Repeat("0b", 32)
	doc := admin.Inspected{
		Image: admin.Image{Reference: "docker.io/library/redis:7", Digest: one, Bytes: 42 << 20, Shared: 30 << 20, Pinned: true, Pulls: 3, LastUse: now.Add(-2 * time.Hour), Checked: &arrived},
		Freed: 12 << 20, Visibility: "public", VisibilityAt: &arrived, Sharers: 22,
		SharedWith: []admin.SharedWith{{Reference: "docker.io/org/app:1", Bytes: 30 << 20}},
		Manifests: []admin.ImageManifest{
			{Digest: two, Platform: "linux/amd64\x1b[2J", State: "partial", Size: 50 << 20, Cached: 42 << 20, Parts: []admin.ImagePart{
				{Digest: one, Role: "config", State: "whole", Size: 5 << 10, Cached: 5 << 10, Arrived: &arrived, Repositories: []string{"docker.io/library/redis", "docker.io/org/app"}, Sharers: 1},
				{Digest: two, Role: "layer", State: "partial", Size: 8 << 20, Cached: 3 << 20},
			}},
			{Digest: one, Attests: "\a", State: "absent"},
		},
	}
	var out strings.Builder
	if err := printInspected(&out, doc, now); err != nil {
		t.Fatal(err)
	}
	const want = `IMAGE       docker.io/library/redis:7
DIGEST      sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a
STATE       partial
SIZE        42MiB, of which 30MiB are shared
FREES       12MiB
PINNED      no room
PULLS       3
LAST USE    2 hours ago
CHECKED     26 hours ago
REPOSITORY  public, as of 26 hours ago

linux/amd64[2J  sha256:0b0b0b0b0b0b  partial, 42MiB of 50MiB
  PART    DIGEST               SIZE  STATE          CAME          FROM            SHARED
  config  sha256:0a0a0a0a0a0a  5KiB  whole          26 hours ago  redis, org/app  with 1 image
  layer   sha256:0b0b0b0b0b0b  8MiB  partial, 3MiB  -             -               no

attestation of :  sha256:0a0a0a0a0a0a  absent

SHARES WITH 22 images
  org/app:1  30MiB
  and 21 more
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
