package settings

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// site is a small table with everything that a table can hold: a map of records, in which
// there are a section, a list, and a list of records with a map of records of its own.
type site struct {
	Title Text
	Hosts Map[host, *host]
	Rules Records[rule, *rule]
}

func (s *site) table() []row {
	return []row{
		{key: "title", value: &s.Title, defValue: "untitled"},
		{key: "hosts", value: &s.Hosts, effect: onReload},
		{key: "policy", effect: onRestart, rows: []row{{key: "rules", value: &s.Rules}}},
	}
}

type host struct {
	URL  Text
	TLS  struct{ CAFile Text }
	Deny List
	Tags Records[rule, *rule]
}

func (h *host) table() []row {
	return []row{
		{key: "url", value: &h.URL, defValue: "https://localhost", effect: onRestart},
		{key: "tls", rows: []row{{key: "ca_file", value: &h.TLS.CAFile}}},
		{key: "deny", value: &h.Deny},
		{key: "tags", value: &h.Tags},
	}
}

func (h *host) check() error {
	if strings.HasPrefix(string(h.URL), "ftp:") {
		return errors.New("url is not a web address")
	}
	return nil
}

type rule struct {
	Match Text
	Keep  Duration
	Limit Map[limit, *limit]
}

func (r *rule) table() []row {
	return []row{{key: "match", value: &r.Match}, {key: "keep", value: &r.Keep, defValue: "10m"}, {key: "limit", value: &r.Limit}}
}

func (r *rule) check() error {
	if r.Match == "" {
		return errors.New("match is missing")
	}
	return nil
}

type limit struct{ Readers Count }

func (l *limit) table() []row { return []row{{key: "readers", value: &l.Readers, defValue: "3"}} }
func (l *limit) check() error { return nil }

const siteFile = `title: Two hosts
hosts:
  ghcr.io:
    url: https://ghcr.example
    tls: {ca_file: /ca.pem}
    deny: ["a,b", c]
  quay.io:
  "100%":
    tags: [{match: "x:*"}, {match: y, keep: 2h, limit: {guest: {readers: 1}, staff: {}}}]
policy:
  rules:
    - match: "z:*"
`

// newSite is a site with its defaults and what the file says.
func newSite(t *testing.T, file string) (s *site, lines map[string]int) {
	t.Helper()
	s = &site{}
	setDefaults(s.table())
	lines, err := decodeFile("site.yaml", []byte(file), s.table())
	if err != nil {
		t.Fatal(err)
	}
	return s, lines
}

// shownSite is every setting of a site as config show would print it.
func shownSite(s *site) map[string]string {
	m := map[string]string{}
	for key, r := range leaves(s.table()) {
		m[key] = textOf(r.value)
	}
	return m
}

// TestTableOfRecords reads a file into records in records: every setting has its value or
// its default, a key of its own and the line where it is set.
func TestTableOfRecords(t *testing.T) {
	s, lines := newSite(t, siteFile)
	want := map[string]string{
		"title":                     "Two hosts",
		"hosts.100%.url":            "https://localhost",
		"hosts.100%.tls.ca_file":    "",
		"hosts.100%.deny":           "",
		"hosts.100%.tags":           `[{"match":"x:*"},{"keep":"2h","limit":{"guest":{"readers":"1"},"staff":{}},"match":"y"}]`,
		"hosts.ghcr.io.url":         "https://ghcr.example",
		"hosts.ghcr.io.tls.ca_file": "/ca.pem",
		"hosts.ghcr.io.deny":        "a,b,c",
		"hosts.ghcr.io.tags":        "[]",
		"hosts.quay.io.url":         "https://localhost",
		"hosts.quay.io.tls.ca_file": "",
		"hosts.quay.io.deny":        "",
		"hosts.quay.io.tags":        "[]",
		"policy.rules":              `[{"match":"z:*"}]`,
	}
	if got := shownSite(s); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	wantLines := map[string]int{"title": 1, "hosts": 3, "hosts.ghcr.io": 3, "hosts.quay.io": 7, "hosts.100%": 8, "hosts.ghcr.io.url": 4, "hosts.ghcr.io.tls.ca_file": 5, "hosts.ghcr.io.deny": 6, "hosts.100%.tags": 9, "policy.rules": 12}
	if !maps.Equal(lines, wantLines) {
		t.Errorf("lines %v, want %v", lines, wantLines)
	}
	if deny := s.Hosts["ghcr.io"].Deny; !reflect.DeepEqual(deny, List{"a,b", "c"}) {
		t.Errorf("a list in a record is %q", deny)
	}
	tags := s.Hosts["100%"].Tags
	if len(tags) != 2 || tags[1].Limit["guest"].Readers != 1 || tags[1].Limit["staff"].Readers != 3 {
		t.Errorf("a map of records in a list of records is %+v", tags)
	}
}

// TestTableIsPrintedAndReadAgain: what is printed of a table is a file that gives the same
// table, and holds only what differs from the defaults.
func TestTableIsPrintedAndReadAgain(t *testing.T) {
	empty := &site{}
	setDefaults(empty.table())
	if got := shownSite(empty); !maps.Equal(got, map[string]string{"title": "untitled", "hosts": "{}", "policy.rules": "[]"}) {
		t.Errorf("an empty site is %v", got)
	}
	if doc := changed(empty.table(), empty.table()); len(doc) != 0 {
		t.Errorf("of defaults %v is printed", doc)
	}
	s, _ := newSite(t, siteFile)
	file, err := yaml.Marshal(changed(s.table(), empty.table()))
	if err != nil {
		t.Fatal(err)
	}
	again, _ := newSite(t, string(file))
	if !reflect.DeepEqual(again, s) {
		t.Errorf("%+v became %+v by\n%s", s, again, file)
	}
	if strings.Contains(string(file), "localhost") || strings.Contains(string(file), "10m") {
		t.Errorf("a default is printed:\n%s", file)
	}
}

// TestFaultsInRecords: every fault in a record is named, with its line and its whole key.
func TestFaultsInRecords(t *testing.T) {
	const file = `hosts:
  a: {url: ftp://x, deny: [[b]], mirror: c}
  b: web
  a: {}
  d: {tls: {ca_file: [e]}, tags: {match: f}}
  g: {tags: [{keep: soon}, h, {match: i, limit: {j: {readers: 0}, k: [l]}}]}
policy: {rules: {match: m}, password: n}
title: [o]
`
	want := `site.yaml:2: hosts.a.deny: every item is a single value
site.yaml:2: hosts.a.mirror: unknown setting
site.yaml:2: hosts.a: url is not a web address
site.yaml:3: hosts.b: is a section: keys and values belong here
site.yaml:4: hosts.a: is set twice, first on line 2
site.yaml:5: hosts.d.tls.ca_file: a single value belongs here
site.yaml:5: hosts.d.tags: a list belongs here, whose items are sections with the keys match, keep, limit
site.yaml:6: hosts.g.tags.keep: "soon" is not a duration like 90s, 10m, 24h, 7d or 2w
site.yaml:6: hosts.g.tags: match is missing
site.yaml:6: hosts.g.tags: is a section: keys and values belong here
site.yaml:6: hosts.g.tags: match is missing
site.yaml:6: hosts.g.tags.limit.j.readers: "0" is not a whole number from 1
site.yaml:6: hosts.g.tags.limit.k: is a section: keys and values belong here
site.yaml:7: policy.rules: a list belongs here, whose items are sections with the keys match, keep, limit
site.yaml:7: policy.password: unknown setting; a secret is never part of this file: name a file with it in upstream.password_file
site.yaml:8: title: a single value belongs here`
	s := &site{}
	setDefaults(s.table())
	_, err := decodeFile("site.yaml", []byte(file), s.table())
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// TestRecordsNeedRestart: a record's setting has the effect of its own row, or of the map
// that it is in, and a record that comes or goes is a change.
func TestRecordsNeedRestart(t *testing.T) {
	old, _ := newSite(t, "hosts: {a: {deny: [x]}, b: }\n")
	next, _ := newSite(t, "hosts: {a: {url: http://a, deny: [y]}, c: }\npolicy: {rules: [{match: z}]}\n")
	want := []string{"hosts.a.url", "hosts.c.url", "policy.rules", "hosts.b.url"}
	if got := needRestart(old.table(), next.table()); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestRecordsAreForTheFile: neither a flag nor a variable can set records.
func TestRecordsAreForTheFile(t *testing.T) {
	for _, v := range []Value{&Map[host, *host]{}, &Records[rule, *rule]{}} {
		if err := v.UnmarshalText([]byte("x")); !errors.Is(err, errFileOnly) {
			t.Errorf("%T: %v", v, err)
		}
	}
}
