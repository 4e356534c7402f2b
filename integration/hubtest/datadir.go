package hubtest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// imagesPerRepository and imagesPerBase are how FillDataDir spreads images.
const (
	imagesPerRepository = 50
	imagesPerBase       = 200
)

// FillDataDir fills a data directory of hubcache with so many images, each with a tag, a manifest,
// a config and two layers, of which many images have the first. To pull them all would take hours.
// It writes what docs/design/disk-format.md says, but for the index, which hubcache makes from it.
func FillDataDir(dir string, images int) error {
	d := dataDir(dir)
	for first := 0; first < images; first += imagesPerRepository {
		repository := fmt.Sprintf("docker.io/org%d/app%d", first/1000, first/imagesPerRepository)
		file := map[string]any{"schema": 1, "repository": repository}
		tags, manifests := map[string]any{}, map[digest.Digest]string{}
		for n := first; n < min(first+imagesPerRepository, images); n++ {
			m, err := d.image(n)
			if err != nil {
				return err
			}
			manifests[m.Digest] = m.MediaType
			tags[fmt.Sprint("1.", n)] = map[string]any{"digest": m.Digest, "size": m.Size, "media_type": m.MediaType, "checked": time.Now()}
		}
		file["tags"], file["manifests"] = tags, manifests
		b, err := json.Marshal(file)
		if err != nil {
			return err
		}
		if err := d.write(filepath.Join("repos", repository+".json"), 0o600, b); err != nil {
			return err
		}
	}
	return nil
}

// dataDir is a data directory of hubcache.
type dataDir string

func (dir dataDir) write(path string, mode os.FileMode, b []byte) error {
	path = filepath.Join(string(dir), path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path, b, mode); err != nil && !os.IsPermission(err) { // a base is there already
		return err
	}
	return nil
}

// image writes the image of that number, and returns its manifest.
func (dir dataDir) image(n int) (v1.Descriptor, error) {
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for _, part := range []struct {
		kind, mediaType string
		number          int
	}{{"config", v1.MediaTypeImageConfig, n}, {"base", v1.MediaTypeImageLayerGzip, n / imagesPerBase}, {"layer", v1.MediaTypeImageLayerGzip, n}} {
		b, err := dir.blob(part.mediaType, fmt.Appendf(nil, "%s %d", part.kind, part.number))
		if err != nil {
			return b, err
		}
		if part.kind == "config" {
			m.Config = b
		} else {
			m.Layers = append(m.Layers, b)
		}
	}
	body, err := json.Marshal(m)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return dir.blob(m.MediaType, body)
}

func (dir dataDir) blob(mediaType string, b []byte) (v1.Descriptor, error) {
	d := digest.FromBytes(b)
	err := dir.write(filepath.Join("blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded()), 0o400, b)
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}, err
}
