package dockerhost

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mustRead reads a state that a change is planned for.
func mustRead(t *testing.T, path string) fileState {
	t.Helper()
	s, err := readState(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// contentOf is the file's content; "" if there is none.
func contentOf(t *testing.T, path string) string {
	t.Helper()
	body, err := readOptional(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// TestReplacedFileKeepsOwnerModeAndAttributes: under any umask, and so does the backup.
func TestReplacedFileKeepsOwnerModeAndAttributes(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	for _, umask := range []int{0, 0o22, 0o77, 0o777} {
		for _, mode := range []uint32{0o600, 0o640, 0o666, 0o444} {
			syscall.Umask(0)
			path := filepath.Join(t.TempDir(), "daemon.json")
			writeFile(t, path, "old")
			note := "kept"
			if err := unix.Setxattr(path, "user.note", []byte(note), 0); notSupported(err) {
				note = "" // this file system has no attributes that could be lost
			} else if err != nil {
				t.Fatal(err)
			}
			want := syscall.Stat_t{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
			if os.Getuid() == 0 {
				want.Uid, want.Gid = 12345, 54321
			}
			if err := errors.Join(os.Chown(path, int(want.Uid), int(want.Gid)), syscall.Chmod(path, mode)); err != nil {
				t.Fatal(err)
			}
			syscall.Umask(umask)
			w, err := mustRead(t, path).replace([]byte("new"))
			syscall.Umask(0)
			if err != nil {
				t.Fatal(err)
			}
			for file, content := range map[string]string{path: "new", w.backup: "old"} {
				var stat syscall.Stat_t
				if err := syscall.Stat(file, &stat); err != nil {
					t.Fatal(err)
				}
				if stat.Uid != want.Uid || stat.Gid != want.Gid || stat.Mode&0o7777 != mode {
					t.Errorf("umask %03o: %s has %d:%d %04o, want %d:%d %04o", umask, file, stat.Uid, stat.Gid, stat.Mode&0o7777, want.Uid, want.Gid, mode)
				}
				if got, err := getAttribute(file, "user.note"); string(got) != note {
					t.Errorf("the attribute of %s is %q, want %q: %v", file, got, note, err)
				}
				if got := contentOf(t, file); got != content {
					t.Errorf("%s has %q, want %q", file, got, content)
				}
			}
		}
	}
}

// TestNewFileIsReadable: a file that is new, and the directories above it, can be read by
// the daemon and everybody, under any umask.
func TestNewFileIsReadable(t *testing.T) {
	old := syscall.Umask(0o777)
	defer syscall.Umask(old)
	dir, err := os.MkdirTemp("", "d")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a", "b", "daemon.json")
	w, err := mustRead(t, path).replace([]byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{path: 0o644, filepath.Dir(path): 0o755, filepath.Join(dir, "a"): 0o755} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, mode)
		}
	}
	if err := w.undo(); err != nil || contentOf(t, path) != "" {
		t.Errorf("after it was taken back: %q, %v", contentOf(t, path), err)
	}
}

// TestEditMeanwhileIsKept: whoever writes the file between plan and write, in whatever way,
// finds it as it was written, and nothing else beside it.
func TestEditMeanwhileIsKept(t *testing.T) {
	rename := func(path, content string) error {
		return errors.Join(os.WriteFile(path+".tmp", []byte(content), 0o644), os.Rename(path+".tmp", path))
	}
	inPlace := func(path, content string) error { return os.WriteFile(path, []byte(content), 0o644) }
	for _, test := range []struct {
		name, before string
		edit         func(path, content string) error
		remove       bool
	}{
		{"in place", "old", inPlace, false},
		{"by renaming", "old", rename, false},
		{"a new file", "", inPlace, false},
		{"in place, to be removed", "old", inPlace, true},
		{"by renaming, to be removed", "old", rename, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "daemon.json")
			if test.before != "" {
				writeFile(t, path, test.before)
			}
			state := mustRead(t, path)
			if err := test.edit(path, "theirs"); err != nil {
				t.Fatal(err)
			}
			content := []byte("ours")
			if test.remove {
				content = nil
			}
			if _, err := state.replace(content); err == nil || !strings.Contains(err.Error(), "meanwhile") {
				t.Errorf("replace: %v", err)
			}
			if got := contentOf(t, path); got != "theirs" {
				t.Errorf("the file has %q", got)
			}
			if names, _ := os.ReadDir(dir); len(names) != 1 {
				t.Errorf("there are %v", names)
			}
		})
	}
}

// TestEditAfterwardsIsKept: what was written is taken back only while nobody else has
// changed it, and a write through a file that was opened before goes to the backup.
func TestEditAfterwardsIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	writeFile(t, path, "old")
	open, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	w, err := mustRead(t, path).replace([]byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open.WriteString(", late"); err != nil || contentOf(t, w.backup) != "old, late" {
		t.Errorf("the backup has %q, %v", contentOf(t, w.backup), err)
	}
	writeFile(t, path, "theirs")
	if err := w.undo(); err == nil || contentOf(t, path) != "theirs" {
		t.Errorf("it was taken back over somebody's edit: %q, %v", contentOf(t, path), err)
	}
	second, err := mustRead(t, path).replace([]byte("new"))
	if err != nil || second.backup == w.backup || contentOf(t, w.backup) != "old, late" {
		t.Errorf("the second backup is %s, %v", second.backup, err)
	}
	if err := second.undo(); err != nil || contentOf(t, path) != "theirs" {
		t.Errorf("after it was taken back: %q, %v", contentOf(t, path), err)
	}
}

// TestFilesThatCantBeKeptAreRefused: what a change would lose is refused, and stays.
func TestFilesThatCantBeKeptAreRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "daemon.json")
	target := filepath.Join(dir, "not", "there.json")
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	if _, err := readState(path); err == nil || !strings.Contains(err.Error(), "is a symlink to "+target) {
		t.Errorf("a dangling symlink: %v", err)
	}
	if to, err := os.Readlink(path); to != target || err != nil {
		t.Errorf("the symlink is %q, %v", to, err)
	}
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "one"), "x")
	if err := os.Link(filepath.Join(dir, "one"), filepath.Join(dir, "two")); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{loop: "too many", dir: "not a regular file", filepath.Join(dir, "one"): "hard links"} {
		if _, err := readState(path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", path, err, says)
		}
	}
}
