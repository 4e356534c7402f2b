package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// writePair writes a certificate with this serial number, and its key.
func writePair(t *testing.T, certFile, keyFile string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, keyFile, "PRIVATE KEY", pkcs8)
	writePEM(t, certFile, "CERTIFICATE", der)
	// Files written at nearly the same time would look the same.
	when := time.Unix(1_700_000_000+serial, 0)
	if err := os.Chtimes(certFile, when, when); err != nil {
		t.Fatal(err)
	}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func serialOf(t *testing.T, k *keyPair) int64 {
	t.Helper()
	cert, err := k.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf.SerialNumber.Int64()
}

// TestCertificateIsReadAgain: a renewed certificate is used without a restart, one without
// its key changes nothing, and SIGHUP reads it at once.
func TestCertificateIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	synctest.Test(t, func(t *testing.T) {
		writePair(t, certFile, keyFile, 1)
		k, err := newKeyPair(certFile, keyFile, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		expect := func(serial int64, when string) {
			t.Helper()
			if got := serialOf(t, k); got != serial {
				t.Errorf("%s: certificate %d, want %d", when, got, serial)
			}
		}
		writePair(t, certFile, keyFile, 2)
		expect(1, "at once")
		time.Sleep(lookEvery + time.Second)
		expect(2, "after a look")

		writePair(t, certFile, filepath.Join(dir, "other.pem"), 3) // its key is still the old one
		time.Sleep(lookEvery + time.Second)
		expect(2, "half renewed")
		if err := k.load(); err == nil {
			t.Error("a key that belongs to another certificate is not an error")
		}
		if err := os.Rename(filepath.Join(dir, "other.pem"), keyFile); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery + time.Second)
		expect(3, "wholly renewed")

		writePair(t, certFile, keyFile, 4)
		if err := k.load(); err != nil {
			t.Fatal(err)
		}
		expect(4, "after a SIGHUP")
		was, err := os.Stat(certFile)
		if err != nil {
			t.Fatal(err)
		}
		writePair(t, certFile+".new", keyFile, 5)
		if err := os.Chtimes(certFile+".new", was.ModTime(), was.ModTime()); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(certFile+".new", certFile); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery + time.Second)
		expect(5, "another file of the same time")
		if err := os.Remove(certFile); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookEvery + time.Second)
		expect(5, "gone")
	})
	if _, err := newKeyPair(certFile, keyFile, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a start without a certificate is not an error")
	}
}

// TestEveryWayToReplaceACertificateIsNoticed: within a minute, even if size, time and file are
// those from before, and whichever of the two files comes first.
func TestEveryWayToReplaceACertificateIsNoticed(t *testing.T) {
	when := time.Unix(1_700_000_000, 0)
	// moveInto writes what is in from over to, without another file or time.
	moveInto := func(t *testing.T, from, to string) {
		t.Helper()
		b, err := os.ReadFile(from)
		if err := errors.Join(err, os.WriteFile(to, b, 0o600), os.Chtimes(to, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	relink := func(t *testing.T, to, link string) {
		t.Helper()
		if err := errors.Join(os.Symlink(to, link+".new"), os.Rename(link+".new", link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, replace := range map[string]func(t *testing.T, dir string, expect func(int64)){
		"in place": func(t *testing.T, dir string, expect func(int64)) {
			moveInto(t, filepath.Join(dir, "2/cert"), filepath.Join(dir, "1/cert"))
			moveInto(t, filepath.Join(dir, "2/key"), filepath.Join(dir, "1/key"))
		},
		"in place, the key first": func(t *testing.T, dir string, expect func(int64)) {
			moveInto(t, filepath.Join(dir, "2/key"), filepath.Join(dir, "1/key"))
			time.Sleep(time.Minute)
			expect(1)
			moveInto(t, filepath.Join(dir, "2/cert"), filepath.Join(dir, "1/cert"))
		},
		"in place, the certificate first": func(t *testing.T, dir string, expect func(int64)) {
			moveInto(t, filepath.Join(dir, "2/cert"), filepath.Join(dir, "1/cert"))
			time.Sleep(time.Minute)
			expect(1)
			moveInto(t, filepath.Join(dir, "2/key"), filepath.Join(dir, "1/key"))
		},
		"as Kubernetes does": func(t *testing.T, dir string, expect func(int64)) {
			relink(t, "2", filepath.Join(dir, "..data"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				for serial, folder := range []string{"1", "2"} {
					path := filepath.Join(dir, folder)
					if err := os.Mkdir(path, 0o700); err != nil {
						t.Fatal(err)
					}
					writePair(t, filepath.Join(path, "cert"), filepath.Join(path, "key"), int64(serial+1))
					if err := errors.Join(os.Chtimes(filepath.Join(path, "cert"), when, when), os.Chtimes(filepath.Join(path, "key"), when, when)); err != nil {
						t.Fatal(err)
					}
				}
				relink(t, "1", filepath.Join(dir, "..data"))
				k, err := newKeyPair(filepath.Join(dir, "..data/cert"), filepath.Join(dir, "..data/key"), slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				expect := func(serial int64) {
					t.Helper()
					if got := serialOf(t, k); got != serial {
						t.Errorf("certificate %d, want %d", got, serial)
					}
				}
				expect(1)
				replace(t, dir, expect)
				time.Sleep(time.Minute)
				expect(2)
			})
		})
	}
}

// TestNewAuthorityIsTrusted: a server's new certificate is trusted within a minute of its
// authority being written into upstream.ca_file, and the old one no longer is. A file that
// can't be used changes nothing.
func TestNewAuthorityIsTrusted(t *testing.T) {
	dir := t.TempDir()
	for _, serial := range []int64{1, 2} {
		writePair(t, filepath.Join(dir, fmt.Sprint("cert", serial)), filepath.Join(dir, fmt.Sprint("key", serial)), serial)
	}
	caFile := filepath.Join(dir, "ca")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(caFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pem := func(serial int) string {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("cert", serial)))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	subjects := func(p *x509.CertPool) (pools [2]bool) {
		for i := range pools {
			want := x509.NewCertPool()
			want.AppendCertsFromPEM([]byte(pem(i + 1)))
			pools[i] = p.Equal(want)
		}
		return pools
	}
	synctest.Test(t, func(t *testing.T) {
		write(pem(1))
		var log bytes.Buffer
		a, err := newAuthorities(caFile, "upstream.ca_file", slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if first := a.get(); subjects(first) != [2]bool{true, false} || a.get() != first {
			t.Error("the file's authority isn't trusted, or each look gives another pool")
		}
		write("")
		for range 3 {
			time.Sleep(time.Minute)
			if subjects(a.get()) != [2]bool{true, false} {
				t.Error("an empty file changes what is trusted")
			}
		}
		if got := strings.Count(log.String(), "level=WARN"); got != 1 {
			t.Errorf("%d warnings, want one: %s", got, log.String())
		}
		write(pem(2))
		time.Sleep(time.Minute)
		if subjects(a.get()) != [2]bool{false, true} {
			t.Error("the new authority isn't trusted alone")
		}
	})
	write("nothing")
	if _, err := newAuthorities(caFile, "upstream.ca_file", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a start without authorities is no error")
	}
}
