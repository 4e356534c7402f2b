package dockerhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reloadDaemon sends SIGHUP to the process of the pid file, if it is a Docker daemon.
func reloadDaemon(pidFile string) error {
	body, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil {
		return fmt.Errorf("%s: %w", pidFile, err)
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return err
	}
	if name := strings.TrimSpace(string(comm)); name != "dockerd" {
		return fmt.Errorf("process %d of %s is %s and not dockerd", pid, pidFile, name)
	}
	return unix.Kill(pid, unix.SIGHUP)
}

// replaceFile writes the file atomically; a symlink stays, and its target is replaced. The
// old content is kept beside the file, and a later backup doesn't overwrite an earlier
// one. When content is nil it removes the file and keeps nothing; setup does so only with
// files that it wrote.
func replaceFile(path string, content []byte) (backup string, err error) {
	if content == nil {
		return "", os.Remove(path)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	mode := fs.FileMode(0o644)
	old, err := readOptional(path)
	if err != nil {
		return "", err
	}
	if old != nil {
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		mode = info.Mode().Perm()
		backup = path + ".before-hubcache"
		if _, err := os.Stat(backup); err == nil {
			backup += "-" + time.Now().Format("20060102-150405")
		}
		if err := writeSynced(backup, old, mode); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	tmp := path + ".hubcache-new"
	if err := writeSynced(tmp, content, mode); err != nil {
		return "", err
	}
	return backup, os.Rename(tmp, path)
}

// writeSynced writes the file and returns when it is on disk.
func writeSynced(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
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
