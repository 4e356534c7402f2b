package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
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
		k, err := newKeyPair(certFile, keyFile)
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
	if _, err := newKeyPair(certFile, keyFile); err == nil {
		t.Error("a start without a certificate is not an error")
	}
}
