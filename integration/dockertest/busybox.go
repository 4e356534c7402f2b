package dockertest

import (
	"archive/tar"
	"bytes"
	"os"
	"testing"
)

// busyboxRoot returns a root file system with a shell and a file with content, as a tar archive.
func busyboxRoot(t testing.TB, content string) []byte {
	t.Helper()
	bin, err := os.ReadFile(program(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Name: "bin/busybox", Mode: 0o755, Typeflag: tar.TypeReg}, bin)
	for _, name := range []string{"sh", "sleep", "true"} {
		add(tar.Header{Name: "bin/" + name, Mode: 0o755, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(tar.Header{Name: "content", Mode: 0o644, Typeflag: tar.TypeReg}, []byte(content))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
