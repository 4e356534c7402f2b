package dockerhost

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// daemonJSON is the text of a daemon.json, and where its list of mirrors is in it. A change
// of the list leaves every other byte as it is.
type daemonJSON struct {
	text       []byte
	mirrors    []mirrorEntry
	start, end int    // of the list's value in text; both 0 if there is none
	last       int    // where the last member ends, or the opening brace if there is none
	empty      bool   // the object has no members
	space      string // between the opening brace and the first member
}

// mirrorEntry is one element of the list: as a string, and as it is written.
type mirrorEntry struct {
	url string
	raw json.RawMessage
}

const mirrorsKey = "registry-mirrors"

// jsonSpace are the characters that JSON takes for white space.
const jsonSpace = " \t\r\n"

// parseDaemonJSON reads a daemon.json. An empty file counts as an empty object. What
// follows the object, and a key that is there twice, is an error.
func parseDaemonJSON(body []byte) (daemonJSON, error) {
	if len(bytes.Trim(body, jsonSpace)) == 0 {
		body = []byte("{}\n")
	}
	d := daemonJSON{text: body, empty: true}
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return d, errors.Join(errors.New("it is not a JSON object"), err)
	}
	d.last = int(dec.InputOffset())
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return d, err
		}
		key := token.(string) // the token before a value is a key
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return d, err
		}
		if seen[key] {
			return d, fmt.Errorf("%q is there twice", key)
		}
		seen[key] = true
		if d.empty {
			rest := body[d.last:]
			d.space, d.empty = string(rest[:len(rest)-len(bytes.TrimLeft(rest, jsonSpace))]), false
		}
		d.last = int(dec.InputOffset())
		if key == mirrorsKey {
			d.start, d.end = d.last-len(value), d.last
			if d.mirrors, err = parseMirrors(value); err != nil {
				return d, err
			}
		}
	}
	if _, err := dec.Token(); err != nil {
		return d, err
	}
	if len(bytes.Trim(body[dec.InputOffset():], jsonSpace)) > 0 {
		return d, errors.New("something follows the object")
	}
	return d, nil
}

// parseMirrors reads the list. null is an empty list, as for the daemon.
func parseMirrors(value json.RawMessage) ([]mirrorEntry, error) {
	var raws []json.RawMessage
	var urls []string
	if err := errors.Join(json.Unmarshal(value, &urls), json.Unmarshal(value, &raws)); err != nil {
		return nil, fmt.Errorf("%s is not a list of strings", mirrorsKey)
	}
	entries := make([]mirrorEntry, len(urls))
	for i := range urls {
		entries[i] = mirrorEntry{urls[i], raws[i]}
	}
	return entries, nil
}

// urls are the mirrors.
func (d daemonJSON) urls() []string {
	var list []string
	for _, m := range d.mirrors {
		list = append(list, m.url)
	}
	return list
}

// withMirror is the text with the mirror first in the list, or, unless it is wanted, without
// it. It returns false if that is so already.
func (d daemonJSON) withMirror(mirror string, want bool) (text []byte, changed bool) {
	ours := func(m mirrorEntry) bool { return sameMirror(m.url, mirror) }
	entries := d.mirrors
	switch found := slices.ContainsFunc(entries, ours); {
	case want && !found:
		raw, _ := json.Marshal(mirror) // a string always works
		entries = append([]mirrorEntry{{mirror, raw}}, entries...)
	case !want && found:
		// An empty list stays: a daemon that reloads a file without one keeps its mirrors.
		entries = slices.DeleteFunc(slices.Clone(entries), ours)
	default:
		return d.text, false
	}
	return d.splice(d.list(entries)), true
}

// list is the JSON of the entries, on several lines if the old list is.
func (d daemonJSON) list(entries []mirrorEntry) string {
	first, between, last := "", ", ", ""
	if old := d.text[d.start:d.end]; bytes.ContainsRune(old, '\n') && len(entries) > 0 {
		indent := "\n  "
		if i := strings.LastIndexByte(d.space, '\n'); i >= 0 {
			indent = d.space[i:]
		}
		step := strings.TrimPrefix(indent, "\n")
		if step == "" {
			step = "  "
		}
		first, between, last = indent+step, ","+indent+step, indent
	}
	var raws []string
	for _, e := range entries {
		raws = append(raws, string(e.raw))
	}
	return "[" + first + strings.Join(raws, between) + last + "]"
}

// splice is the text with that list in the place of the old one, or as the last member.
func (d daemonJSON) splice(list string) []byte {
	start, end := d.start, d.end
	member := `"` + mirrorsKey + `": ` + list
	switch {
	case end > 0:
		member = list
	case d.empty:
		start, end = d.last, bytes.LastIndexByte(d.text, '}')
		member = "\n  " + member + "\n"
	default:
		start, end = d.last, d.last
		member = "," + d.space + member
	}
	return slices.Concat(d.text[:start], []byte(member), d.text[end:])
}
