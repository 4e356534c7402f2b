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

// String formats c so that ParseChallenges returns it again.
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
// (RFC 9110 §11.6.1). It is lenient about white space, stray commas and values that
// should have been quoted. Credentials in the form of a token68 are skipped. Where a
// field can't be understood, or a value holds a control character, the challenge at
// hand and the rest of that field are dropped. A parameter given twice counts once, as first given.
func ParseChallenges(h http.Header) []Challenge {
	var all []Challenge
	for _, value := range h.Values("WWW-Authenticate") {
		all = append(all, (&scanner{rest: value}).challenges()...)
	}
	return all
}

// scanner reads one field value from the left.
type scanner struct{ rest string }

func (s *scanner) challenges() []Challenge {
	var all []Challenge
	for s.skip(" \t,"); s.rest != ""; s.skip(" \t,") {
		name := strings.ToLower(s.run(isToken))
		if name == "" {
			return all[:max(len(all)-1, 0)]
		}
		s.skip(" \t")
		// Both a scheme and a parameter may follow a comma; the equals sign tells.
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

// value reads a token or a quoted string; ok is false when it is unusable.
func (s *scanner) value() (value string, ok bool) {
	if strings.HasPrefix(s.rest, `"`) {
		value, ok = s.quoted()
	} else {
		value = s.run(func(c byte) bool { return c != ',' && c != ' ' && c != '\t' && c != '"' })
		ok = value != ""
	}
	return value, ok && !strings.ContainsFunc(value, unicode.IsControl)
}

func (s *scanner) quoted() (string, bool) {
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

// token68 skips credentials such as those of Negotiate: a run that ends the challenge.
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

func (s *scanner) skip(set string) { s.rest = strings.TrimLeft(s.rest, set) }

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

// isToken: tchar of RFC 9110 §5.6.2.
func isToken(c byte) bool { return isAlnum(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 }

// isToken68: RFC 9110 §11.2, without the padding.
func isToken68(c byte) bool { return isAlnum(c) || strings.IndexByte("-._~+/", c) >= 0 }
