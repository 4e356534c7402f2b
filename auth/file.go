package auth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// recheck bounds how often a File is looked at: often enough for a person who has
	// just replaced it, rare enough to cost nothing on a busy cache.
	recheck = 5 * time.Second
	// maxSecret is far above any access token; a longer file is the wrong file.
	maxSecret = 64 << 10
)

// Credential is a user name and a secret that no formatting verb, log handler or
// encoder reveals. The zero value is "anonymous".
type Credential struct {
	Username string
	// Version rises with every change of the secret in its File; 0 means anonymous.
	Version uint64

	// A pointer, because fmt prints the unexported strings of a struct that holds a
	// Credential without asking its methods, and of a pointer only the address.
	secret *string
}

// String names the user and hides the secret.
func (c Credential) String() string {
	if c.secret == nil {
		return "anonymous"
	}
	return c.Username + ":[hidden]"
}

// GoString hides the secret from %#v.
func (c Credential) GoString() string { return fmt.Sprintf("auth.Credential(%q)", c.String()) }

// LogValue hides the secret from log/slog.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText hides the secret from encoders; it never fails.
func (c Credential) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// basic is the value of an Authorization header that carries the credential.
func (c Credential) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+*c.secret))
}

// FileError says why a credential file can't be used. Its text names the file.
type FileError struct {
	Path string
	Err  error
}

func (e *FileError) Error() string { return fmt.Sprintf("password file %q: %v", e.Path, e.Err) }
func (e *FileError) Unwrap() error { return e.Err }

// File is a credential whose secret lives in a file, looked at again when it changes.
// All methods are safe for concurrent use.
type File struct {
	username, path string

	mu      sync.Mutex // guards what follows, and one look at the file at a time
	cred    Credential
	seen    os.FileInfo // of the content in cred; nil: read again whatever stat says
	checked time.Time   // zero: look now
	err     error       // of the last look
}

// NewFile returns the credential of username (a Docker ID, or an organisation's name)
// with the secret in path. A relative path is looked up in $CREDENTIALS_DIRECTORY,
// where systemd's LoadCredential= puts files. The file is first read by Credential.
func NewFile(username, path string) *File { return &File{username: username, path: path} }

// Credential returns the secret as the file has it, looked at through symbolic links at
// most every 5 s. A trailing newline is not part of it. A file that fails after it was
// read once (gone, emptied, half replaced) leaves the last good secret in force; before
// that, the error is a *FileError.
func (f *File) Credential() (Credential, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.checked.IsZero() || time.Since(f.checked) >= recheck {
		f.look()
	}
	if f.cred.secret == nil {
		return Credential{}, f.err
	}
	return f.cred, nil
}

// Version looks at the file as Credential does, and returns the version of the secret in
// force: it rises whenever the secret changes. 0 means that none was read yet.
func (f *File) Version() uint64 {
	c, _ := f.Credential() // without one its Version is 0
	return c.Version
}

// Reload reads the file now, whatever its times say: what SIGHUP is for. The error, a
// *FileError, is what is wrong with the file even while an earlier secret stays in force.
func (f *File) Reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = nil
	f.look()
	return f.err
}

// Path is where the secret is looked for.
func (f *File) Path() string {
	if filepath.IsAbs(f.path) {
		return f.path
	}
	return filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), f.path)
}

// look reads the file if it has changed. Callers hold mu.
func (f *File) look() {
	f.checked = time.Now()
	secret, info, err := f.read()
	if err != nil {
		f.err = &FileError{Path: f.Path(), Err: err}
		return
	}
	f.err, f.seen = nil, info
	if secret != nil && (f.cred.secret == nil || *secret != *f.cred.secret) {
		f.cred = Credential{Username: f.username, Version: f.cred.Version + 1, secret: secret}
	}
}

// read returns the secret, or nil when the file is the one that was seen.
func (f *File) read() (*string, os.FileInfo, error) {
	if strings.ContainsRune(f.username, ':') {
		return nil, nil, fmt.Errorf("user name %q: must not contain a colon", f.username)
	}
	path := f.Path()
	if !filepath.IsAbs(path) {
		return nil, nil, errors.New("a relative name needs $CREDENTIALS_DIRECTORY (systemd's LoadCredential=), which is not set")
	}
	// Stat before open: opening a FIFO would block until somebody writes.
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("is not a regular file")
	}
	if s := f.seen; s != nil && os.SameFile(s, info) && s.ModTime().Equal(info.ModTime()) && s.Size() == info.Size() {
		return nil, info, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, cause(err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxSecret+1))
	if err != nil {
		return nil, nil, cause(err)
	}
	if len(data) > maxSecret {
		return nil, nil, errors.New("is longer than 64 KiB: not an access token")
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" {
		return nil, nil, errors.New("is empty: put the access token in it")
	}
	return &secret, info, nil
}

// cause takes the path out of an error that FileError names again.
func cause(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}
