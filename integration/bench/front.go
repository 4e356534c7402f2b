package main

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// front serves the Hub's registry and token service on one address. distribution 3 gets
// tokens only from a realm of the registry's own domain, and three loopback ports share no
// domain. Blobs still come from the CDN. The proxy keeps its connections to the Hub open, so
// distribution 3 does not pay for new ones.
func (u *upstream) front() (addr string, err error) {
	registry, err := url.Parse(u.hub.RegistryURL())
	if err != nil {
		return "", err
	}
	token, err := url.Parse(u.hub.Network.URL(hubtest.Token))
	if err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	proxy := &httputil.ReverseProxy{
		ErrorLog:  log.New(io.Discard, "", 0), // it would report clients that leave
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
		Rewrite: func(r *httputil.ProxyRequest) {
			if r.In.URL.Path == "/token" {
				r.SetURL(token)
			} else {
				r.SetURL(registry)
			}
		},
		ModifyResponse: func(resp *http.Response) error {
			h := resp.Header
			if c := h.Get("Www-Authenticate"); c != "" {
				h.Set("Www-Authenticate", strings.Replace(c, token.Host, l.Addr().String(), 1))
			}
			return nil
		},
	}
	go http.Serve(l, proxy) // until the program ends
	return l.Addr().String(), nil
}
