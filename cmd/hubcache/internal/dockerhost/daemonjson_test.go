package dockerhost

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
)

// TestDaemonJSONKeepsItsForm: only the list changes, byte for byte, whatever the file's form.
func TestDaemonJSONKeepsItsForm(t *testing.T) {
	const m = "http://127.0.0.1:5000"
	for _, test := range []struct{ before, with, without string }{
		{"", "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5000\"]\n}\n", "{\n  \"registry-mirrors\": []\n}\n"},
		{"{}", "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5000\"]\n}", "{\n  \"registry-mirrors\": []\n}"},
		{`{"a": 1e3,"b":9007199254740993 }`, `{"a": 1e3,"b":9007199254740993,"registry-mirrors": ["http://127.0.0.1:5000"] }`, ""},
		{"{\n\t\"a\": {\"b\": \"\\u003c\"}\n}\n", "{\n\t\"a\": {\"b\": \"\\u003c\"},\n\t\"registry-mirrors\": [\"http://127.0.0.1:5000\"]\n}\n", ""},
		{`{"registry-mirrors":null}`, `{"registry-mirrors":["http://127.0.0.1:5000"]}`, `{"registry-mirrors":[]}`},
		{"{\n  \"registry-mirrors\": [\n    \"https:\\/\\/other\"\n  ],\n  \"a\": 1\n}",
			"{\n  \"registry-mirrors\": [\n    \"http://127.0.0.1:5000\",\n    \"https:\\/\\/other\"\n  ],\n  \"a\": 1\n}",
			"{\n  \"registry-mirrors\": [\n    \"https:\\/\\/other\"\n  ],\n  \"a\": 1\n}"},
	} {
		d, err := parseDaemonJSON([]byte(test.before))
		if err != nil {
			t.Errorf("%s: %v", test.before, err)
			continue
		}
		with, changed := d.withMirror(m, true)
		if string(with) != test.with || !changed {
			t.Errorf("%q with the mirror is\n%q, want\n%q", test.before, with, test.with)
		}
		again, err := parseDaemonJSON(with)
		if err != nil {
			t.Errorf("%s: %v", with, err)
			continue
		}
		if _, changed := again.withMirror(m+"/", true); changed {
			t.Errorf("%s: the mirror was added twice", with)
		}
		if without, _ := again.withMirror(m, false); test.without != "" && string(without) != test.without {
			t.Errorf("%q without the mirror is\n%q, want\n%q", with, without, test.without)
		}
	}
}

// FuzzDaemonJSON: of any object that is taken, everything but the mirror stays: each key with
// its value byte for byte, in the same order, and the other mirrors.
func FuzzDaemonJSON(f *testing.F) {
	for _, seed := range []string{
		`{}`, ``, `{"a": 1, "b": [1, {"c": "<&>"}]}`, `{"registry-mirrors": ["x"], "é": null}`, `{"registry-mirrors": [null, "http://m/"]}`,
		"{\n  \"a\": 1\n}\n", "{\"\xff\": \"\xfe\", \"registry-mirrors\":\n[]}", `{"registry-\u006dirrors": ["a"]} `, `{} {}`, `{}}`, `{"a":1,"a":2}`, "{//c\n}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		const mirror = "http://127.0.0.1:5000"
		before, err := parseDaemonJSON(body)
		if err != nil {
			return
		}
		with, _ := before.withMirror(mirror, true)
		middle, err := parseDaemonJSON(with)
		if err != nil {
			t.Fatalf("%q became %q: %v", body, with, err)
		}
		without, _ := middle.withMirror(mirror, false)
		after, err := parseDaemonJSON(without)
		if err != nil {
			t.Fatalf("%q became %q: %v", body, without, err)
		}
		others := func(urls []string) []string {
			return slices.DeleteFunc(urls, func(m string) bool { return sameMirror(m, mirror) })
		}
		if want, got := others(before.urls()), after.urls(); !slices.Equal(want, got) {
			t.Errorf("%q: the mirrors %q became %q", body, want, got)
		}
		if !slices.ContainsFunc(middle.urls(), func(m string) bool { return sameMirror(m, mirror) }) {
			t.Errorf("%q has no mirror", with)
		}
		want := membersOf(t, before.text)
		for _, text := range [][]byte{with, without} {
			if got := membersOf(t, text); !slices.Equal(got, want) {
				t.Errorf("%q became %q: members %q, want %q", body, text, got, want)
			}
		}
	})
}

// membersOf are the keys and the values of an object as they are written, but for the mirrors.
func membersOf(t *testing.T, text []byte) (members []string) {
	t.Helper()
	if !json.Valid(text) {
		t.Fatalf("%q is not valid", text)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if _, err := dec.Token(); err != nil {
		t.Fatal(err)
	}
	for dec.More() {
		from := dec.InputOffset()
		key, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		raw := bytes.TrimLeft(text[from:dec.InputOffset()], ", \t\r\n")
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			t.Fatal(err)
		}
		if key != mirrorsKey {
			members = append(members, string(raw), string(value))
		}
	}
	return members
}
