package server

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// lookEvery is how often, at most, files with certificates are read again. They are read
// whole, because neither size nor time nor identity of a file says for sure that nobody has
// written to it.
const lookEvery = 5 * time.Second

// rereadFiles are files that are read again when they are used. It is safe for concurrent use.
type rereadFiles struct {
	paths []string
	what  string // for the log: "the certificate"
	log   *slog.Logger
	// use takes over the contents. It isn't called by two goroutines at once.
	use func(contents [][]byte) error

	reading sync.Mutex // held while the files are read and used; before mu
	was     [][]byte   // guarded by reading: what was used last; nil: nothing yet
	failed  string     // guarded by reading: what was logged since it was last right

	mu      sync.Mutex // guards checked
	checked time.Time  // the last look
}

// load reads the files now, and uses them. When it fails, what was used last stays.
func (r *rereadFiles) load() error {
	r.reading.Lock()
	defer r.reading.Unlock()
	r.mu.Lock()
	r.checked = time.Now()
	r.mu.Unlock()
	var contents [][]byte
	for _, path := range r.paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		contents = append(contents, b)
	}
	if same(contents, r.was) {
		return nil
	}
	if err := r.use(contents); err != nil {
		return err
	}
	if r.was != nil {
		r.log.Info(r.what+" has changed and is in use", "files", r.paths)
	}
	r.was = contents
	return nil
}

func same(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// look reads the files again if the last look is long ago. A fault is logged once: of two
// files, one may be replaced before the other, and the next look finds both.
func (r *rereadFiles) look() {
	r.mu.Lock()
	due := time.Since(r.checked) > lookEvery
	if due {
		r.checked = time.Now()
	}
	r.mu.Unlock()
	if !due {
		return
	}
	text := ""
	if err := r.load(); err != nil {
		text = err.Error()
	}
	r.reading.Lock()
	defer r.reading.Unlock()
	if text != "" && text != r.failed {
		r.log.Warn(r.what+" can't be read; the last one stays in use", "error", text)
	}
	r.failed = text
}

// keyPair is a certificate with its key. It is safe for concurrent use.
type keyPair struct {
	*rereadFiles

	mu   sync.Mutex // guards cert
	cert *tls.Certificate
}

// newKeyPair reads a certificate and its key.
func newKeyPair(certFile, keyFile string, log *slog.Logger) (*keyPair, error) {
	k := &keyPair{}
	k.rereadFiles = &rereadFiles{paths: []string{certFile, keyFile}, what: "the certificate", log: log, use: func(pem [][]byte) error {
		cert, err := tls.X509KeyPair(pem[0], pem[1])
		if err != nil {
			return fmt.Errorf("%s with %s: %w", certFile, keyFile, err)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.cert = &cert
		return nil
	}}
	if err := k.load(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return k, nil
}

// get is for tls.Config.GetCertificate.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.look()
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cert, nil
}

// authorities are the certificates that are trusted upstream. It is safe for concurrent use.
type authorities struct {
	*rereadFiles

	mu   sync.Mutex // guards pool
	pool *x509.CertPool
}

// newAuthorities reads a file of certificates. setting is its key, for messages.
func newAuthorities(path, setting string, log *slog.Logger) (*authorities, error) {
	a := &authorities{}
	a.rereadFiles = &rereadFiles{paths: []string{path}, what: setting, log: log, use: func(pem [][]byte) error {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem[0]) {
			return fmt.Errorf("%s holds no certificate", path)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.pool = pool
		return nil
	}}
	if err := a.load(); err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	return a, nil
}

// get is for upstream.Options.RootCAs.
func (a *authorities) get() *x509.CertPool {
	a.look()
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pool
}
