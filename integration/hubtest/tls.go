package hubtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

// authority is the Hub's own certificate authority and the one certificate it signed.
type authority struct {
	ca   *x509.Certificate
	leaf tls.Certificate
}

// CA returns the PEM certificate that clients must trust, and a pool with it. Both are nil
// without TLS and when Options.Certificate was given.
func (n *Network) CA() ([]byte, *x509.CertPool) {
	if n.ca == nil {
		return nil, nil
	}
	pool := x509.NewCertPool()
	pool.AddCert(n.ca.ca)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: n.ca.ca.Raw}), pool
}

// serverConfig uses the given certificate, or the authority's own when it is nil.
func (a *authority) serverConfig(given *tls.Certificate) *tls.Config {
	if given == nil {
		given = &a.leaf
	}
	return &tls.Config{Certificates: []tls.Certificate{*given}, NextProtos: []string{"http/1.1"}}
}

// hostNames are the names that the certificate must cover.
func hostNames(o Options) []string {
	names := []string{"localhost"}
	for _, face := range faces {
		names = append(names, defaultNames[face])
		if name := o.name(face); name != "" {
			names = append(names, name)
		}
		if host, _, err := net.SplitHostPort(o.addr(face)); err == nil && host != "" {
			names = append(names, host)
		}
	}
	return names
}

func newAuthority(names []string) *authority {
	caKey, ca := newCertificate(&x509.Certificate{
		Subject:      pkix.Name{CommonName: "hubtest test authority"},
		IsCA:         true,
		KeyUsage:     x509.KeyUsageCertSign,
		SubjectKeyId: []byte("hubtest"),
	}, nil, nil)
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "hubtest"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
			continue
		}
		template.DNSNames = append(template.DNSNames, name)
	}
	key, leaf := newCertificate(template, ca, caKey)
	return &authority{ca: ca, leaf: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}
}

// newCertificate makes a key and its certificate, signed by the parent or by itself.
func newCertificate(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now().Add(-24 * time.Hour)
	template.NotAfter = time.Now().Add(365 * 24 * time.Hour)
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return key, cert
}
