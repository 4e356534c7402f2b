package auth

import (
	"net/http"
	"reflect"
	"strings"
	"testing"
	"unicode"
)

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
