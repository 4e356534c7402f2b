package dockerhost

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// The names under which Docker, containerd and Podman look for certificates in a registry's directory.
const (
	authorityName = "ca.crt"
	clientName    = "client.cert"
	clientKeyName = "client.key"
)

// Certificates are the files that Setup gives the client for a mirror with https. Empty names mean
// that it gets none.
type Certificates struct {
	CA   string // the authorities of the cache's own certificate, PEM
	Cert string // the client's certificate, which the cache asks for with tls.client_ca_file, PEM
	Key  string // its key, PEM, not encrypted
}

func (c Certificates) none() bool { return c == Certificates{} }

// pemFile is the content of a file in the mirror's directory.
type pemFile struct {
	name string
	body []byte
	mode os.FileMode
}

// read reads the files and checks that the client can use them. Errors: settings.UsageError when one
// is missing or is for something else, those of the disk.
func (c Certificates) read() (files []pemFile, err error) {
	usage := func(format string, args ...any) error {
		return settings.UsageError{Err: fmt.Errorf(format, args...)}
	}
	if (c.Cert == "") != (c.Key == "") {
		return nil, usage("--client-cert and --client-key belong together")
	}
	if c.CA != "" {
		body, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("--ca: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(body) {
			return nil, usage("--ca: %s has no certificate in PEM", c.CA)
		}
		files = append(files, pemFile{authorityName, body, 0o644})
	}
	if c.Cert == "" {
		return files, nil
	}
	cert, err := os.ReadFile(c.Cert)
	if err != nil {
		return nil, fmt.Errorf("--client-cert: %w", err)
	}
	key, err := os.ReadFile(c.Key)
	if err != nil {
		return nil, fmt.Errorf("--client-key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, usage("--client-cert %s and --client-key %s can't be used together: %w", c.Cert, c.Key, err)
	}
	if !forClients(pair.Leaf) {
		return nil, usage("--client-cert: %s is a certificate for servers: its extended key usage lacks clientAuth", c.Cert)
	}
	// The key is last: until it is there, no client uses the certificate that belongs to another key.
	return append(files, pemFile{clientName, cert, 0o644}, pemFile{clientKeyName, key, 0o600}), nil
}

// forClients reports whether servers take a certificate from a client.
func forClients(cert *x509.Certificate) bool {
	return len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) == 0 ||
		slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// planCertificates adds to the plan what has to happen to the certificates in a directory: those given
// are written to the mirror's directory, and an undo takes those of earlier runs away. A file that
// somebody else has written stays: another content is an error.
func (s *Setup) planCertificates(plan *setupPlan, certs string, undo bool) error {
	if undo {
		return planWithoutCertificates(plan, certs)
	}
	if s.Certificates.none() {
		return nil
	}
	u, err := url.Parse(s.Mirror)
	if err != nil || u.Scheme != "https" {
		return settings.UsageError{Err: fmt.Errorf("--ca, --client-cert and --client-key are for a mirror with https, and this one is %s", printable(s.Mirror))}
	}
	files, err := s.Certificates.read()
	if err != nil {
		return err
	}
	for _, f := range files {
		file, err := readState(filepath.Join(registryDir(certs, u.Host), f.name))
		if err != nil {
			return err
		}
		content := append([]byte(hostsMark), f.body...)
		switch {
		case bytes.Equal(file.body, content), bytes.Equal(file.body, f.body):
		case file.body != nil && !ours(file.body):
			return fmt.Errorf("%s is there already, is another one, and was not written by hubcache: remove it first", file.path)
		default:
			file.mode = f.mode
			plan.changes = append(plan.changes, change{file, "write what the client needs for " + u.Host, content, false})
		}
	}
	return nil
}

// planWithoutCertificates adds to the plan that the certificates of earlier runs go.
func planWithoutCertificates(plan *setupPlan, certs string) error {
	for _, name := range []string{clientKeyName, clientName, authorityName} {
		old, err := filepath.Glob(filepath.Join(certs, "*", name))
		if err != nil {
			return err
		}
		for _, path := range old {
			if body, err := os.ReadFile(path); err != nil || !ours(body) {
				continue // what can't be read was not written by this user
			}
			file, err := readState(path)
			if err != nil {
				return err
			}
			plan.changes = append(plan.changes, change{file, "remove", nil, false})
		}
	}
	return nil
}

// planned are the names of the certificates that will be in the mirror's directory after this setup.
func (c Certificates) planned() (names []string) {
	if c.CA != "" {
		names = append(names, authorityName)
	}
	if c.Cert != "" {
		names = append(names, clientName)
	}
	return names
}

// certificateFiles are the files of a directory with this suffix, with those that are about to be
// written there.
func certificateFiles(dir, suffix string, planned []string) []string {
	files, _ := filepath.Glob(filepath.Join(dir, "*"+suffix)) // the pattern has no fault
	for _, name := range planned {
		if path := filepath.Join(dir, name); strings.HasSuffix(name, suffix) && !slices.Contains(files, path) {
			files = append(files, path)
		}
	}
	slices.Sort(files)
	return files
}
