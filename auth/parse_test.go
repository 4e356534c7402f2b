package auth

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
)

func rawReader(text string) (*bufio.Reader, *http.Request) {
	return bufio.NewReader(strings.NewReader(text)), nil
}

type params = map[string]string

var challengeTests = map[string][]Challenge{
	`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull"`: {{"bearer", params{
		"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:library/x:pull"}}},
	`Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:a/b:pull",error="insufficient_scope"`: {{"bearer", params{
		"realm": "https://ghcr.io/token", "service": "ghcr.io", "scope": "repository:a/b:pull", "error": "insufficient_scope"}}},
	`Basic realm="Sonatype Nexus Repository Manager"`:  {{"basic", params{"realm": "Sonatype Nexus Repository Manager"}}},
	`BASIC Realm=x , bearer  REALM = "y" ,, service=z`: {{"basic", params{"realm": "x"}}, {"bearer", params{"realm": "y", "service": "z"}}},
	`Newauth realm="apps", type=1, title="Login to \"apps\"", Basic realm="simple"`: {{"newauth", params{
		"realm": "apps", "type": "1", "title": `Login to "apps"`}}, {"basic", params{"realm": "simple"}}},
	`Negotiate, NTLM, Basic realm="x"`:         {{"negotiate", nil}, {"ntlm", nil}, {"basic", params{"realm": "x"}}},
	`Negotiate YWJj==, Bearer realm="x"`:       {{"negotiate", nil}, {"bearer", params{"realm": "x"}}},
	`Bearer realm="a,b=\"c\"",service=""`:      {{"bearer", params{"realm": `a,b="c"`, "service": ""}}},
	`Bearer realm="a",realm="b"`:               {{"bearer", params{"realm": "a"}}},
	`Bearer realm=https://a/token,service=b`:   {{"bearer", params{"realm": "https://a/token", "service": "b"}}},
	`Basic realm="x", Bearer realm="y`:         {{"basic", params{"realm": "x"}}},
	"Basic realm=\"x\", Bearer realm=\"\x01\"": {{"basic", params{"realm": "x"}}},
	`Bearer "x"`:    {},
	`Bearer realm=`: {{"bearer", nil}},
	``:              nil, `,, ,`: nil, `"`: nil, `=`: nil,
}

func TestParseChallenges(t *testing.T) {
	for field, want := range challengeTests {
		got := ParseChallenges(http.Header{"Www-Authenticate": {field}})
		if len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %q\nwant %q", field, got, want)
		}
	}
	two := ParseChallenges(http.Header{"Www-Authenticate": {`"`, `Basic realm="a"`, `Bearer realm="b"`}})
	if len(two) != 2 {
		t.Errorf("two fields after a broken one: %q", two)
	}
}

func FuzzParseChallenges(f *testing.F) {
	for field := range challengeTests {
		f.Add(field)
	}
	f.Fuzz(func(t *testing.T, field string) {
		all := ParseChallenges(http.Header{"Www-Authenticate": {field}})
		var texts []string
		for _, c := range all {
			if c.Scheme == "" || c.Scheme != strings.ToLower(c.Scheme) {
				t.Errorf("scheme %q", c.Scheme)
			}
			for name, value := range c.Params {
				if name == "" || strings.ContainsFunc(value, unicode.IsControl) {
					t.Errorf("%q=%q", name, value)
				}
			}
			texts = append(texts, c.String())
		}
		again := ParseChallenges(http.Header{"Www-Authenticate": {strings.Join(texts, ", ")}})
		if len(all)+len(again) > 0 && !reflect.DeepEqual(all, again) {
			t.Errorf("%q\nread     %q\nagain as %q", field, all, again)
		}
	})
}

func FuzzParseRetryAfter(f *testing.F) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for _, s := range []string{"60", "0", "-1", " 7 ", "99999999999999999999", "1.5", "", "Fri, 01 May 2026 12:01:00 GMT", "Friday, 01-May-26 11:00:00 GMT", "Fri May  1 12:30:00 2026"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		wait, ok := ParseRetryAfter(value, now)
		if ok && (wait < minCooldown || wait > maxCooldown) || !ok && wait != 0 {
			t.Errorf("%q: %s, %v", value, wait, ok)
		}
		// Written out again, it means the same.
		if again, ok2 := ParseRetryAfter(now.Add(wait).Format(http.TimeFormat), now); ok && (!ok2 || again != wait.Truncate(time.Second)) {
			t.Errorf("%q: %s, as a date %s", value, wait, again)
		}
	})
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"60": time.Minute, " 7 ": 7 * time.Second, "0": time.Second, "901": 15 * time.Minute, "99999999999999999999": 15 * time.Minute,
		"": 0, "-1": 0, "1.5": 0, "soon": 0,
		"Fri, 01 May 2026 12:01:00 GMT": time.Minute, "Fri, 01 May 2026 11:00:00 GMT": time.Second, "Sat, 02 May 2026 12:00:00 GMT": 15 * time.Minute,
	} {
		if got, ok := ParseRetryAfter(value, now); got != want || ok != (want != 0) {
			t.Errorf("%q: %s, %v; want %s", value, got, ok, want)
		}
	}
}

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
