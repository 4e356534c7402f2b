package auth

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// checkInterval is the time between two looks at the file: short enough for a person who
	// has just replaced it, long enough that reading it costs nothing on a busy cache.
	checkInterval = 5 * time.Second
	// maxSecret, in bytes, is far above any access token. A longer file is the wrong file.
	maxSecret = 64 << 10
)

// Credential is a user name and a secret. No formatting verb, log handler or encoder shows
// the secret. The zero value means anonymous.
type Credential struct {
	Username string
	// Version rises with every change of the secret in its File; 0 means anonymous.
	Version uint64

	// secret is a pointer because fmt prints only the address of a pointer. It prints the
	// text of an unexported string in a struct without calling the methods below.
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

// Matches reports whether text is the secret. It takes the same time for every text of a length.
// Anonymous matches nothing.
func (c Credential) Matches(text string) bool {
	return c.secret != nil && subtle.ConstantTimeCompare([]byte(*c.secret), []byte(text)) == 1
}

// basic returns the value of an Authorization header with the credential, which must not
// be anonymous.
func (c Credential) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+*c.secret))
}

// FileFault is what is wrong with a password file, in one word.
type FileFault string

// The faults.
const (
	FileMissing    FileFault = "missing"
	FileUnreadable FileFault = "unreadable" // by this user, or at all
	FileEmpty      FileFault = "empty"
	FileMalformed  FileFault = "malformed" // its content can't be an access token or a password
)

// FileError says why a password file can't be used. Its text names the file, and holds nothing
// of its content.
type FileError struct {
	Path  string
	Fault FileFault
	Err   error
}

// Error implements error.
func (e *FileError) Error() string { return fmt.Sprintf("password file %q: %v", e.Path, e.Err) }

// Unwrap returns Err.
func (e *FileError) Unwrap() error { return e.Err }

// File is a credential whose secret is in a file, which is read again and again: neither size
// nor time nor identity of a file says for sure that nobody has written to it.
// Make one with NewFile. All methods are safe for concurrent use.
type File struct {
	username, path string

	mu      sync.Mutex // guards what follows; held while the file is read; no other lock is taken under it
	cred    Credential
	checked time.Time // the last look at the file; zero: look now
	err     error     // of the last look
	exposed bool      // every user may read the file, as of the last look
}

// NewFile returns the credential of username (a Docker ID, or an organisation's name)
// with the secret in the file at path. A relative path is looked up in
// $CREDENTIALS_DIRECTORY, where systemd's LoadCredential= puts files. NewFile doesn't read
// the file; Credential does.
func NewFile(username, path string) *File { return &File{username: username, path: path} }

// Credential returns the user name and the secret in the file, without line ends at its end.
// It reads the file, through symbolic links, at most every 5 s. When the file can't be
// used any more (removed, emptied, half replaced), Credential goes on returning the last good
// secret. While there is none, the error is a *FileError.
func (f *File) Credential() (Credential, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.checked.IsZero() || time.Since(f.checked) >= checkInterval {
		f.refresh()
	}
	if f.cred.secret == nil {
		return Credential{}, f.err
	}
	return f.cred, nil
}

// Version reads the file as Credential does, and returns the version of the secret that
// Credential returns. It rises whenever the secret changes. 0 means that none was read yet.
func (f *File) Version() uint64 {
	c, _ := f.Credential() // after an error, Version is 0
	return c.Version
}

// Reload reads the file now. SIGHUP calls it. The error, a
// *FileError, says what is wrong with the file; Credential may still return an earlier secret.
func (f *File) Reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refresh()
	return f.err
}

// Path returns the path of the file, with $CREDENTIALS_DIRECTORY in front if it was relative.
func (f *File) Path() string {
	if filepath.IsAbs(f.path) {
		return f.path
	}
	return filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), f.path)
}

// Exposed reports whether every user of this machine may read the file, as of the last look.
func (f *File) Exposed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.exposed
}

// look reads the file if that is due. It returns what the last look found wrong, "" for
// nothing, and the version of the secret in use, which is an earlier one then; 0 for none.
func (f *File) look() (fault FileFault, detail string, version uint64) {
	c, _ := f.Credential() // what is wrong is in f.err
	f.mu.Lock()
	defer f.mu.Unlock()
	if fe, ok := errors.AsType[*FileError](f.err); ok {
		return fe.Fault, fe.Err.Error(), c.Version
	}
	return "", "", c.Version
}

// refresh reads the file. Callers hold mu.
func (f *File) refresh() {
	f.checked = time.Now()
	secret, fault, err := f.read()
	if err != nil {
		f.err = &FileError{Path: f.Path(), Fault: fault, Err: err}
		return
	}
	f.err = nil
	if f.cred.secret == nil || secret != *f.cred.secret {
		f.cred = Credential{Username: f.username, Version: f.cred.Version + 1, secret: &secret}
	}
}

// read returns the secret that is in the file, and sets exposed. fault says what is wrong if there
// is an error. Callers hold mu.
func (f *File) read() (secret string, fault FileFault, err error) {
	if strings.ContainsRune(f.username, ':') {
		return "", FileMalformed, fmt.Errorf("user name %q: must not contain a colon", f.username)
	}
	path := f.Path()
	if !filepath.IsAbs(path) {
		return "", FileMissing, errors.New("a relative name needs $CREDENTIALS_DIRECTORY (systemd's LoadCredential=), which is not set")
	}
	// Stat comes before open, because opening a FIFO would block until somebody writes to it.
	info, err := os.Stat(path)
	if err != nil {
		return "", faultOf(err), cause(err)
	}
	f.exposed = info.Mode().Perm()&0o004 != 0
	if !info.Mode().IsRegular() {
		return "", FileUnreadable, errors.New("is not a regular file")
	}
	file, err := os.Open(path)
	if err != nil {
		return "", faultOf(err), cause(err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxSecret+1))
	if err != nil {
		return "", FileUnreadable, cause(err)
	}
	if len(data) > maxSecret {
		return "", FileMalformed, errors.New("is longer than 64 KiB: not an access token")
	}
	secret = strings.TrimRight(string(data), "\r\n")
	if strings.TrimSpace(secret) == "" {
		return "", FileEmpty, errors.New("is empty: put the access token in it")
	}
	if err := checkSecret(secret); err != nil {
		return "", FileMalformed, fmt.Errorf("can't be an access token: %w", err)
	}
	return secret, "", nil
}

// faultOf is the fault of a file that can't be opened.
func faultOf(err error) FileFault {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return FileMissing
	}
	return FileUnreadable
}

// cause returns err without its path, since FileError names that.
func cause(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}
