package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// clientCheck admits the clients whose certificate an authority of tls.client_ca_file has signed. It
// is safe for concurrent use.
type clientCheck struct {
	authorities *authorities
	refused     func(client net.Addr, why string) // counts and logs
	log         *slog.Logger
}

// verified is what is known of the certificate of one connection.
type verified struct {
	by    *x509.CertPool // the authorities that it was verified by
	until time.Time
}

// verifiedKey is the key of a connection's *atomic.Pointer[verified] in the contexts of its requests.
type verifiedKey struct{}

// newClientCheck reads tls.client_ca_file.
func newClientCheck(path string, refused func(net.Addr, string), log *slog.Logger) (*clientCheck, error) {
	a, err := newAuthorities(path, "tls.client_ca_file", log)
	if err != nil {
		return nil, err
	}
	return &clientCheck{authorities: a, refused: refused, log: log}, nil
}

// require makes a server demand a certificate: when a client connects, and again with each request,
// since authorities can be taken out of the file while a connection is open.
func (c *clientCheck) require(s *http.Server) {
	base := s.TLSConfig
	base.ClientAuth = tls.RequestClientCert
	base.NextProtos = []string{"h2", "http/1.1"} // the server adds them to its own copy alone
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		next := base.Clone()
		// The client learns the authorities, and so which of its certificates to send.
		next.ClientCAs = c.authorities.get()
		// Called for resumed sessions, too. A refusal by the library itself would be logged where
		// nobody looks.
		next.VerifyConnection = func(state tls.ConnectionState) error {
			_, err := c.verify(&state)
			if err != nil {
				c.refused(hello.Conn.RemoteAddr(), "a client was refused: tls.client_ca_file: "+err.Error())
			}
			return err
		}
		return next, nil
	}
	s.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, verifiedKey{}, &atomic.Pointer[verified]{})
	}
	s.Handler = c.again(s.Handler)
}

var errNoCertificate = errors.New("it sent no certificate, or none of these authorities")

// verify checks the certificate of a connection by the authorities as they are now.
func (c *clientCheck) verify(state *tls.ConnectionState) (*verified, error) {
	if len(state.PeerCertificates) == 0 {
		return nil, errNoCertificate
	}
	v := &verified{by: c.authorities.get()}
	o := x509.VerifyOptions{Roots: v.by, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, cert := range state.PeerCertificates[1:] {
		o.Intermediates.AddCert(cert)
	}
	chains, err := state.PeerCertificates[0].Verify(o)
	if err != nil {
		return nil, err
	}
	for i, cert := range chains[0] {
		if i == 0 || cert.NotAfter.Before(v.until) {
			v.until = cert.NotAfter
		}
	}
	return v, nil
}

// again refuses the requests of a connection whose certificate has expired, or whose authority is no
// longer in the file. What is being sent goes on.
func (c *clientCheck) again(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		known, _ := req.Context().Value(verifiedKey{}).(*atomic.Pointer[verified])
		if v := known.Load(); v == nil || v.by != c.authorities.get() || time.Now().After(v.until) {
			v, err := c.verify(req.TLS)
			if err != nil {
				c.log.Warn("a connection was closed: tls.client_ca_file: "+err.Error(), "client", req.RemoteAddr)
				panic(http.ErrAbortHandler)
			}
			known.Store(v)
		}
		next.ServeHTTP(w, req)
	})
}
