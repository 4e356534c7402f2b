package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// keyPair is a certificate that is read again when its file changes. It is safe for
// concurrent use.
type keyPair struct {
	certFile, keyFile string

	mu      sync.Mutex // guards what follows
	cert    *tls.Certificate
	file    fs.FileInfo // certFile, as it was read
	checked time.Time
}

// lookEvery is how often, at most, a handshake looks whether the certificate's file has
// changed.
const lookEvery = 5 * time.Second

func newKeyPair(certFile, keyFile string) (*keyPair, error) {
	k := &keyPair{certFile: certFile, keyFile: keyFile}
	return k, k.load()
}

// load reads both files. When it fails, the old pair stays.
func (k *keyPair) load() error {
	fi, err := os.Stat(k.certFile)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(k.certFile, k.keyFile)
	if err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cert, k.file, k.checked = &cert, fi, time.Now()
	return nil
}

// get is for tls.Config.GetCertificate.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	due := time.Since(k.checked) > lookEvery
	if due {
		k.checked = time.Now()
	}
	was := k.file
	k.mu.Unlock()
	if due {
		// In a Nix store all files have the same time, so the file itself is compared too.
		if fi, err := os.Stat(k.certFile); err == nil && !(os.SameFile(fi, was) && fi.ModTime().Equal(was.ModTime())) {
			k.load() // fails when only one file is replaced yet: then the old pair stays until the next look
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cert == nil {
		return nil, errors.New("no certificate")
	}
	return k.cert, nil
}
