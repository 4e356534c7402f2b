package auth

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
)

// TestIsAbuseLimit takes the error from the real net/http, over a socket.
func TestIsAbuseLimit(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			http.ReadRequest(bufio.NewReader(conn))
			fmt.Fprint(conn, "HTTP/1.1 429 Too Many Requests\nRetry-After: 60\nToo Many Requests (HAP429).\n")
			conn.Close()
		}
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + ln.Addr().String() + "/v2/a/manifests/1")
	if err == nil {
		resp.Body.Close()
	}
	if !IsAbuseLimit(err) {
		t.Errorf("%v is the abuse limit", err)
	}
	_, other := client.Get("http://127.0.0.1:1/v2/a/manifests/HAP429")
	for _, err := range []error{nil, other, errors.New("malformed MIME header line: Too Many Requests (HAP429)"), &ThrottledError{}} {
		if IsAbuseLimit(err) {
			t.Errorf("%v is not the abuse limit", err)
		}
	}
	if !IsAbuseLimit(fmt.Errorf("wrapped: %w", &ThrottledError{Abuse: true})) {
		t.Error("a ThrottledError that says so")
	}
}
