package dockerhost

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fileState is a file as it was when a change of it was planned.
type fileState struct {
	path string      // behind all symlinks
	body []byte      // nil when there is no file
	info fs.FileInfo // nil when there is no file
	mode fs.FileMode // of a file that isn't there yet; 0 is 0644
}

// readState reads a file that is to be changed. It refuses what a change would lose: a
// symlink to nothing, a file that has other names, and what is no regular file.
func readState(path string) (fileState, error) {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if to, err := os.Readlink(path); err == nil {
			return fileState{}, fmt.Errorf("%s is a symlink to %s, and nothing is there: make that file, or remove the symlink", path, to)
		}
		return fileState{path: path}, nil
	}
	if err != nil {
		return fileState{}, err
	}
	info, err := os.Stat(real)
	if err != nil {
		return fileState{}, err
	}
	if !info.Mode().IsRegular() {
		return fileState{}, fmt.Errorf("%s is not a regular file", real)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Nlink > 1 {
		return fileState{}, fmt.Errorf("%s has %d names (hard links); the others would keep the old content: leave one", real, stat.Nlink)
	}
	body, err := os.ReadFile(real)
	return fileState{path: real, body: append([]byte{}, body...), info: info}, err
}

// errChanged refuses to overwrite what somebody else has written meanwhile.
func errChanged(path string) error {
	return fmt.Errorf("%s was changed by somebody else meanwhile: run the command again", path)
}

// written is a change that has been made and can be taken back.
type written struct {
	path    string
	content []byte // nil: the file was removed
	backup  string // the old file; "" if there was none
}

// replace gives the file this content, or, if it is nil, removes it. The new file has the
// owner, the mode and the attributes of the old one, and the old one stays as a backup, so
// what somebody still writes into it isn't lost either. A file that is no longer as it was
// planned for stays as it is.
func (s fileState) replace(content []byte) (written, error) {
	w := written{path: s.path, content: content}
	if s.info == nil && content == nil {
		return w, nil
	}
	if content == nil {
		aside, err := freeName(s.path)
		if err != nil {
			return w, err
		}
		if err := renameNew(s.path, aside); err != nil {
			return w, err
		}
		w.backup = aside
		if !s.unchanged(aside) {
			return w, errors.Join(errChanged(s.path), renameNew(aside, s.path))
		}
		return w.onDisk()
	}
	tmp, err := s.writeTemp(content)
	if err != nil {
		return w, err
	}
	defer removeIf(tmp, content) // it is gone unless something failed
	if s.info == nil {
		if err := renameNew(tmp, s.path); errors.Is(err, fs.ErrExist) {
			return w, errChanged(s.path)
		} else if err != nil {
			return w, err
		}
		return w.onDisk()
	}
	if w.backup, err = freeName(s.path); err != nil {
		return w, err
	}
	if err := s.exchange(tmp, w.backup); err != nil {
		return w, err
	}
	return w.onDisk()
}

// onDisk waits until the change is on disk, and takes it back if that fails.
func (w written) onDisk() (written, error) {
	if err := syncDir(w.path); err != nil {
		return w, errors.Join(err, w.undo())
	}
	return w, nil
}

// exchange puts the temporary file in the place of the file, which becomes the backup.
func (s fileState) exchange(tmp, backup string) error {
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, s.path, unix.RENAME_EXCHANGE)
	switch {
	case err == nil:
		why := errChanged(s.path)
		if s.unchanged(tmp) {
			if why = renameNew(tmp, backup); why == nil {
				return nil
			}
		}
		return errors.Join(why, unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, s.path, unix.RENAME_EXCHANGE))
	case !notSupported(err):
		return &os.PathError{Op: "replace", Path: s.path, Err: err}
	}
	if err := os.Link(s.path, backup); err != nil {
		return err
	}
	if !s.unchanged(backup) {
		return errors.Join(errChanged(s.path), os.Remove(backup))
	}
	return os.Rename(tmp, s.path)
}

// removeIf removes the file if it has this content: the file may be somebody else's when an
// exchange could not be taken back.
func removeIf(path string, content []byte) {
	if body, err := os.ReadFile(path); err == nil && bytes.Equal(body, content) {
		_ = os.Remove(path)
	}
}

// unchanged reports whether the file that is called path now is the one that was read.
func (s fileState) unchanged(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || s.info == nil || !os.SameFile(info, s.info) {
		return false
	}
	body, err := os.ReadFile(path)
	return err == nil && bytes.Equal(body, s.body)
}

// undo takes the change back, unless somebody has changed the file since.
func (w written) undo() error {
	body, err := readOptional(w.path)
	if err != nil {
		return err
	}
	if !bytes.Equal(body, w.content) || (body == nil) != (w.content == nil) {
		return fmt.Errorf("%s was changed by somebody else and stays as it is; the old one is %s", w.path, w.backup)
	}
	if w.backup == "" {
		return os.Remove(w.path)
	}
	return errors.Join(os.Rename(w.backup, w.path), syncDir(w.path))
}

// writeTemp writes the content beside the file, on disk, with the file's owner, mode and
// attributes, whatever the umask is.
func (s fileState) writeTemp(content []byte) (path string, err error) {
	if err := makeDirs(filepath.Dir(s.path)); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(filepath.Dir(s.path), "."+filepath.Base(s.path)+".hubcache-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(content)
	if err == nil && s.info != nil {
		err = copyAttributes(f, s.path, s.info)
	} else if err == nil {
		err = f.Chmod(cmp.Or(s.mode, 0o644))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// makeDirs makes the directory and those above it that are missing, for everybody to read,
// whatever the umask is.
func makeDirs(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeDirs(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// copyAttributes gives f the owner, the mode and the extended attributes (access lists,
// labels) of the file at path. It fails if it can't.
func copyAttributes(f *os.File, path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: its owner isn't known", path)
	}
	if own, err := f.Stat(); err != nil {
		return err
	} else if now := own.Sys().(*syscall.Stat_t); now.Uid != stat.Uid || now.Gid != stat.Gid {
		if err := f.Chown(int(stat.Uid), int(stat.Gid)); err != nil {
			return fmt.Errorf("%s belongs to user %d and group %d, which this user can't keep: %w", path, stat.Uid, stat.Gid, err)
		}
	}
	// For the attributes, this user must be allowed to write, whatever the umask was.
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	names, err := listAttributes(path)
	if err != nil {
		return fmt.Errorf("the attributes of %s: %w", path, err)
	}
	for _, name := range names {
		value, err := getAttribute(path, name)
		if err != nil {
			return fmt.Errorf("the attribute %s of %s: %w", name, path, err)
		}
		if had, err := getAttribute(f.Name(), name); err == nil && bytes.Equal(had, value) {
			continue
		}
		if err := unix.Fsetxattr(int(f.Fd()), name, value, 0); err != nil {
			return fmt.Errorf("the attribute %s of %s can't be kept: %w", name, path, err)
		}
	}
	// Last, because the mode may be one with which the owner can't write.
	return unix.Fchmod(int(f.Fd()), stat.Mode&0o7777)
}

// listAttributes are the names of the file's extended attributes, but for the kernel's
// checksums of its content.
func listAttributes(path string) ([]string, error) {
	buf := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Listxattr(path, buf)
	if notSupported(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
	return slices.DeleteFunc(names, func(name string) bool {
		return name == "" || name == "security.ima" || name == "security.evm"
	}), nil
}

func getAttribute(path, name string) ([]byte, error) {
	buf := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Getxattr(path, name, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// notSupported reports whether the file system lacks what was asked for.
func notSupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)
}

// renameNew renames a file and fails when there is one of the new name.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if notSupported(err) {
		if err := os.Link(from, to); err != nil {
			return err
		}
		return os.Remove(from)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// freeName is a name beside the file for the old one. Earlier backups keep theirs.
func freeName(path string) (string, error) {
	name := path + ".before-hubcache"
	for i := 0; ; i++ {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return name, nil
		} else if err != nil {
			return "", err
		}
		name = path + ".before-hubcache-" + time.Now().Format("20060102-150405")
		if i > 0 {
			name += fmt.Sprintf("-%d", i)
		}
	}
}

// syncDir puts the names in the file's directory on disk.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readOptional is the file's content; nil without an error when there is no file.
func readOptional(path string) ([]byte, error) {
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && body == nil {
		body = []byte{}
	}
	return body, err
}
