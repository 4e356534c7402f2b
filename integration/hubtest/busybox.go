package hubtest

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// Tar makes the tar of a layer with these files, by path, in an order and with times that
// are always the same.
func Tar(files map[string]string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		addFile(w, &tar.Header{Name: name, Mode: 0o644}, files[name])
	}
	w.Close()
	return buf.Bytes()
}

// addFile can't fail but for a name that no tar can hold.
func addFile(w *tar.Writer, header *tar.Header, content string) {
	header.Size = int64(len(content))
	if err := w.WriteHeader(header); err != nil {
		panic(fmt.Sprintf("hubtest: %v", err))
	}
	w.Write([]byte(content))
}

// busyboxPath is where Debian's busybox-static puts its one program.
const busyboxPath = "/bin/busybox"

// applets are the names under which busybox can be run in the image.
var applets = strings.Fields("cat cp date df echo env false grep head id ln ls md5sum mkdir mv nc printf ps pwd rm sed sh sha256sum sleep sort stat tail tar test touch tr true uname wc wget")

// Busybox is a layer that makes an image runnable: the static /bin/busybox of this machine,
// sh and other names for it, /tmp and the users root and nobody. It fails when the program
// is missing or needs libraries, and then says which package has it.
func Busybox() (Layer, error) {
	program, err := os.ReadFile(busyboxPath)
	if err != nil {
		return Layer{}, fmt.Errorf("hubtest: a static busybox is needed (package busybox-static): %w", err)
	}
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return Layer{}, fmt.Errorf("hubtest: %s: %w", busyboxPath, err)
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			return Layer{}, fmt.Errorf("hubtest: %s is not static (install package busybox-static)", busyboxPath)
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range []string{"bin/", "etc/", "root/"} {
		addFile(w, &tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	addFile(w, &tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, "")
	addFile(w, &tar.Header{Name: "bin/busybox", Mode: 0o755}, string(program))
	for _, name := range applets {
		addFile(w, &tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, "")
	}
	addFile(w, &tar.Header{Name: "etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
	addFile(w, &tar.Header{Name: "etc/group", Mode: 0o644}, "root:x:0:\nnogroup:x:65534:\n")
	w.Close()
	return Layer{Tar: buf.Bytes()}, nil
}
