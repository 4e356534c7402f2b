package hubtest_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestLayersCanBeUnpacked unpacks synthetic and real layers as a container engine does, and
// compares them with the config's diff IDs.
func TestLayersCanBeUnpacked(t *testing.T) {
	busybox, err := hubtest.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	hub := hubtest.New(hubtest.Options{})
	img := hub.AddImage("a/b", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{
		busybox, {Tar: hubtest.Tar(map[string]string{"etc/motd": "hello\n"})}, {Size: 4096}, {Size: 1_000_001},
	}})
	m := img.Manifests[0]
	var config ocispec.Image
	if err := json.NewDecoder(hub.Blob(m.Config.Digest)).Decode(&config); err != nil {
		t.Fatal(err)
	}
	var names []string
	for i, l := range m.Layers {
		var r io.Reader = hub.Blob(l.Digest)
		if strings.HasSuffix(l.MediaType, "+gzip") {
			if r, err = gzip.NewReader(r); err != nil {
				t.Fatal(err)
			}
		}
		content, err := io.ReadAll(r)
		if err != nil || digest.FromBytes(content) != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d: diff ID, %v", i, err)
		}
		tr := tar.NewReader(bytes.NewReader(content))
		for header, err := tr.Next(); err != io.EOF; header, err = tr.Next() {
			if err != nil {
				t.Fatalf("layer %d: %v", i, err)
			}
			names = append(names, header.Name)
		}
	}
	for _, want := range []string{"bin/busybox", "bin/sh", "etc/motd"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s in %q", want, names)
		}
	}
	if !strings.HasPrefix(names[len(names)-1], "fakehub/") {
		t.Errorf("synthetic layer: %q", names)
	}
}

// FuzzLayerReadAt reads a part of a layer and compares it with the whole layer.
func FuzzLayerReadAt(f *testing.F) {
	f.Add(uint64(1), uint16(5000), uint16(511), uint16(700))
	f.Add(uint64(2), uint16(4096), uint16(0), uint16(4096))
	f.Add(uint64(3), uint16(10), uint16(3), uint16(4))
	f.Fuzz(func(t *testing.T, seed uint64, size, off, n uint16) {
		layer := hubtest.NewLayer(seed, int64(size))
		whole := make([]byte, size)
		if _, err := layer.ReadAt(whole, 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if size >= 4096 {
			n := 0
			for tr := tar.NewReader(bytes.NewReader(whole)); ; n++ {
				if _, err := tr.Next(); err == io.EOF {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if n != 1 {
				t.Fatalf("%d files", n)
			}
		}
		part := make([]byte, n)
		got, _ := layer.ReadAt(part, int64(off))
		want := whole[min(off, size):min(int(off)+int(n), int(size))]
		if !bytes.Equal(part[:got], want) {
			t.Fatalf("%d bytes at %d of %d differ", n, off, size)
		}
	})
}
