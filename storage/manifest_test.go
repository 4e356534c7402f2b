package storage

import (
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestPutManifestMakesAManifestOfABlob: a manifest that is there as a blob, since it was found without
// a record after a crash, can be read as a manifest after PutManifest.
func TestPutManifestMakesAManifestOfABlob(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	body := []byte(`{"schemaVersion":2}`)
	d := put(t, s, body) // as a blob, which is all that is known of a file without a record
	if err := s.PutManifest(Origin{Repository: repo}, d, "application/vnd.oci.image.manifest.v1+json", body); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Manifest(d); err != nil {
		t.Error("PutManifest returned nil and the manifest isn't there:", err)
	}
}

// TestManifestLostInAPowerCutIsNotServed: a manifest isn't synced when it is committed. After a power cut
// its file may have the right size and no bytes. It must not be read as a blob then, either.
func TestManifestLostInAPowerCutIsNotServed(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	body := []byte(`{"schemaVersion":2}`)
	d := digest.FromBytes(body)
	if err := s.PutManifest(Origin{Repository: repo}, d, "x", body); err != nil {
		t.Fatal(err)
	}
	path := s.files.layout.blob(d)
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o600)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Write(make([]byte, len(body)))
	f.Close()
	os.Chmod(path, fi.Mode())
	os.Chtimes(path, fi.ModTime(), fi.ModTime())
	if b, err := s.Open(d); err == nil {
		b.Close()
		t.Error("zeros are served as the blob of a manifest")
	}
	if _, err := s.Manifest(d); err == nil {
		t.Error("zeros are served as the manifest")
	}
}
