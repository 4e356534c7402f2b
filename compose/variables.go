package compose

import (
	"regexp"

	"github.com/compose-spec/compose-go/v2/template"
)

// lookup returns a variable's value, and whether it is set.
type lookup = template.Mapping

// substitute replaces the variables in a text of the file as Compose does, but for one that has
// neither a value nor a default it writes the placeholder.
func substitute(text string, lookup lookup) (string, error) {
	s, err := template.SubstituteWithOptions(text, lookup, template.WithoutLogging, template.WithReplacementFunction(replace))
	return anyAddress.ReplaceAllString(s, "127.0.0.1$1"), err
}

// expression is one variable, with braces or without.
var expression = regexp.MustCompile(`^\$\{?([A-Za-z_][A-Za-z0-9_]*)(:?[-?+])?((?s).*?)\}?$`)

// replace returns what takes the place of the variable at the beginning of text. The library's
// pattern is greedy, so text may go on after that variable, up to the last brace.
func replace(text string, lookup lookup, config *template.Config) (string, error) {
	end := closingBrace(text)
	parts := expression.FindStringSubmatch(text[:end])
	if parts == nil { // $$, or wrong
		return template.DefaultReplacementFunc(text, lookup, config)
	}
	rest, err := substitute(text[end:], lookup)
	if err != nil {
		return "", err
	}
	value, err := valueOf(parts[1], parts[2], parts[3], lookup)
	return value + rest, err
}

// valueOf returns the value of ${name}, of ${name:-word}, and so on.
func valueOf(name, operator, word string, lookup lookup) (string, error) {
	value, set := lookup(name)
	if operator != "" && operator[0] == ':' && value == "" { // empty counts as unset
		if operator == ":+" && set {
			return "", nil
		}
		set = false
	}
	switch {
	case set && (operator == "+" || operator == ":+"):
		return substitute(word, lookup)
	case set:
		return value, nil
	case word != "" && (operator == "-" || operator == ":-"):
		return substitute(word, lookup)
	}
	return placeholder, nil
}

// closingBrace returns the index after the brace that closes the first one in text, or the
// length of text. As in the library, the character after an opening brace isn't looked at.
func closingBrace(text string) int {
	open := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '{':
			open++
			i++
		case '}':
			if open--; open == 0 {
				return i + 1
			}
		}
	}
	return len(text)
}
