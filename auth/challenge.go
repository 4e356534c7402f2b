package auth

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode"
)

// Challenge is one challenge of a WWW-Authenticate header.
type Challenge struct {
	Scheme string            // lower case: "bearer", "basic"
	Params map[string]string // names in lower case, values unquoted; nil when there are none
}

// String formats c as in a WWW-Authenticate header. ParseChallenges reads it back.
func (c Challenge) String() string {
	var b strings.Builder
	b.WriteString(c.Scheme)
	sep := " "
	for _, name := range slices.Sorted(maps.Keys(c.Params)) {
		b.WriteString(sep + name + `="` + quoter.Replace(c.Params[name]) + `"`)
		sep = ","
	}
	return b.String()
}

var quoter = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// ParseChallenges returns the challenges of all WWW-Authenticate fields of h, in order
// (RFC 9110 §11.6.1). It accepts white space, extra commas and values without their quotes.
// It skips the token68 form of parameters. Where a field can't be understood, or a value has
// a control character, it drops that challenge and the rest of the field. Of a parameter
// that is given twice, the first value counts.
func ParseChallenges(h http.Header) []Challenge {
	var all []Challenge
	for _, value := range h.Values("WWW-Authenticate") {
		all = append(all, (&scanner{rest: value}).challenges()...)
	}
	return all
}

// scanner reads one field value from left to right.
type scanner struct{ rest string }

func (s *scanner) challenges() []Challenge {
	var all []Challenge
	for s.skip(" \t,"); s.rest != ""; s.skip(" \t,") {
		name := strings.ToLower(s.run(isToken))
		if name == "" {
			return all[:max(len(all)-1, 0)]
		}
		s.skip(" \t")
		// After a comma there is a scheme or a parameter. Only a parameter has an equals sign.
		if len(all) == 0 || !strings.HasPrefix(s.rest, "=") {
			all = append(all, Challenge{Scheme: name})
			s.token68()
			continue
		}
		s.rest = s.rest[1:]
		s.skip(" \t")
		value, ok := s.value()
		if !ok {
			return all[:len(all)-1]
		}
		c := &all[len(all)-1]
		if c.Params == nil {
			c.Params = map[string]string{}
		}
		if _, twice := c.Params[name]; !twice {
			c.Params[name] = value
		}
	}
	return all
}

// value reads a token or a quoted string; ok is false if it is not usable.
func (s *scanner) value() (value string, ok bool) {
	if strings.HasPrefix(s.rest, `"`) {
		value, ok = s.quoted()
	} else {
		value = s.run(func(c byte) bool { return c != ',' && c != ' ' && c != '\t' && c != '"' })
		ok = value != ""
	}
	return value, ok && !strings.ContainsFunc(value, unicode.IsControl)
}

// quoted reads a quoted string; ok is false if it has no end.
func (s *scanner) quoted() (value string, ok bool) {
	var b strings.Builder
	for i := 1; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '"':
			s.rest = s.rest[i+1:]
			return b.String(), true
		case c == '\\' && i+1 < len(s.rest):
			i++
			b.WriteByte(s.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// token68 skips parameters in the form that Negotiate uses, which end the challenge.
func (s *scanner) token68() {
	t := scanner{rest: s.rest}
	if t.run(isToken68) == "" {
		return
	}
	t.skip("=")
	if t.skip(" \t"); t.rest == "" || t.rest[0] == ',' {
		*s = t
	}
}

// skip skips the bytes that are in set.
func (s *scanner) skip(set string) { s.rest = strings.TrimLeft(s.rest, set) }

// run reads the bytes for which of is true.
func (s *scanner) run(of func(byte) bool) string {
	n := 0
	for n < len(s.rest) && of(s.rest[n]) {
		n++
	}
	run := s.rest[:n]
	s.rest = s.rest[n:]
	return run
}

func isAlnum(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9'
}

// isToken reports whether c is a tchar of RFC 9110 §5.6.2.
func isToken(c byte) bool { return isAlnum(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 }

// isToken68 reports whether c may be in a token68 of RFC 9110 §11.2, before its padding.
func isToken68(c byte) bool { return isAlnum(c) || strings.IndexByte("-._~+/", c) >= 0 }
