package image

import (
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// FuzzChildren: every child comes once, with a valid digest and size; and a manifest made of the
// children has the same children.
func FuzzChildren(f *testing.F) {
	d := digest.FromString("x")
	f.Add(fmt.Appendf(nil, `{"config":{"digest":%q,"size":3},"layers":[{"digest":%q,"size":3},{"digest":%q,"size":4}]}`, d, d, digest.FromString("y")))
	f.Add(fmt.Appendf(nil, `{"manifests":[{"digest":%q,"size":-3},{"digest":"sha256:../../etc","size":1}]}`, d))
	f.Add([]byte(`{"layers":{"digest":1}}`))
	f.Add([]byte(`{"layers":null,"manifests":[],"config":null}`))
	f.Add([]byte(`[[[[`))
	f.Fuzz(func(t *testing.T, body []byte) {
		children := Children(body)
		seen := map[digest.Digest]bool{}
		var again struct {
			Manifests []map[string]any `json:"manifests"`
			Config    map[string]any   `json:"config"`
			Layers    []map[string]any `json:"layers"`
		}
		for _, c := range children {
			if seen[c.Digest] || c.Size < 0 || c.Digest.Validate() != nil {
				t.Fatalf("%q: %+v", body, c)
			}
			seen[c.Digest] = true
			m := map[string]any{"digest": c.Digest, "size": c.Size}
			switch c.Role {
			case RoleManifest:
				again.Manifests = append(again.Manifests, m)
			case RoleConfig:
				again.Config = m
			case RoleLayer:
				again.Layers = append(again.Layers, m)
			default:
				t.Fatalf("role %d", c.Role)
			}
		}
		b, err := json.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		if got := Children(b); !reflect.DeepEqual(got, children) {
			t.Errorf("%q: %v, then %v", body, children, got)
		}
	})
}

// TestHostileManifestsCostLittle: none of them takes much memory or time, and none has children.
func TestHostileManifestsCostLittle(t *testing.T) {
	const limit = 4 << 20 // the largest body that the registry takes; these are larger
	fill := func(open, piece, end string) []byte {
		return []byte(open + strings.Repeat(piece, (5<<20-len(open)-len(end))/len(piece)) + end)
	}
	for name, body := range map[string][]byte{
		"a million layers":       fill(`{"layers":[{}`, `,{}`, `]}`),
		"a million manifests":    fill(`{"manifests":[{}`, `,{}`, `]}`),
		"a million configs":      fill(`{"x":1`, `,"config":{}`, `}`),
		"a million nulls":        fill(`{"blobs":[null`, `,null`, `]}`),
		"deep arrays":            fill(`{"layers":`, `[`, ``),
		"deep objects":           fill(``, `{"manifests":[{"config":`, ``),
		"deep in something else": fill(`{"annotations":`, `{"a":`, `1`),
		"one long string":        fill(`{"mediaType":"`, `x`, `"}`),
		"5 MiB of spaces":        fill(`{`, ` `, `}`),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		if c := Children(body); len(c) > 0 {
			t.Errorf("%s: %d children", name, len(c))
		}
		took := time.Since(start)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 4*limit {
			t.Errorf("%s: %d MiB allocated", name, n>>20)
		}
		if took > 3*time.Second {
			t.Errorf("%s: %s", name, took)
		}
	}
}
