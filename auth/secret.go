package auth

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// checkSecret finds why a text can't be an access token or a password. Its error says what is
// odd and where, and holds none of the text.
func checkSecret(s string) error {
	if quoted(s) {
		return errors.New("it is in quotation marks: the file holds the token and nothing else")
	}
	at := 0
	for i, r := range s {
		at++
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			return fmt.Errorf("character %d is not text", at)
		case r == '\n' || r == '\r':
			return fmt.Errorf("it has more than one line: the first ends after %d characters", at-1)
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r):
			return fmt.Errorf("character %d is a control character (%U)", at, r)
		case unicode.IsSpace(r):
			return fmt.Errorf("character %d is a blank%s", at, whichEnd(s, i, r))
		}
	}
	if i := max(strings.Index(s, "dckr_pat_"), strings.Index(s, "dckr_oat_")); i > 0 {
		return fmt.Errorf("the token begins only at character %d: the file holds the token and nothing before it", utf8.RuneCountInString(s[:i])+1)
	}
	return nil
}

// quoted reports whether a text begins and ends with quotation marks.
func quoted(s string) bool {
	const marks = "\"'`“”‘’„«»"
	first, n := utf8.DecodeRuneInString(s)
	last, _ := utf8.DecodeLastRuneInString(s)
	return len(s) > n && strings.ContainsRune(marks, first) && strings.ContainsRune(marks, last)
}

// whichEnd says of a blank, which nobody sees, when it is the first or the last character.
func whichEnd(s string, i int, r rune) string {
	switch {
	case i == 0:
		return ", the first"
	case i+utf8.RuneLen(r) == len(s):
		return ", the last"
	}
	return ""
}
