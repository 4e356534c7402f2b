package settings

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

const (
	// prefix begins the name of every variable.
	prefix = "HUBCACHE_"
	// documentVariable has settings as YAML, for what doesn't fit into one word, like
	// tags.rules.
	documentVariable = prefix + "SETTINGS"
	configVariable   = prefix + "CONFIG"
)

// otherVariables are the names that begin with the prefix and are not those of settings.
func otherVariables() []string {
	return []string{documentVariable, configVariable, prefix + "ADMIN", prefix + "HOLD"}
}

// variable is the environment variable of a setting: tags.ttl is HUBCACHE_TAGS_TTL.
func variable(key string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// alias is an older name of the variable, after the flag: --tag-ttl is HUBCACHE_TAG_TTL. It is
// "" if there is none.
func (r row) alias(key string) string {
	if r.flag == "" {
		return ""
	}
	name := prefix + strings.ToUpper(strings.ReplaceAll(r.flag, "-", "_"))
	if name == variable(key) {
		return ""
	}
	return name
}

// readEnvironment sets what the environment has: first the document, then single variables. An
// empty variable is as one that is not there.
func readEnvironment(s *Loaded) error {
	if doc := os.Getenv(documentVariable); doc != "" {
		if err := s.readDocument("environment "+documentVariable, documentVariable, []byte(doc)); err != nil {
			return err
		}
	}
	for key, r := range leaves(s.table()) {
		name, text := variable(key), os.Getenv(variable(key))
		if old := r.alias(key); os.Getenv(old) != "" {
			if text != "" && text != os.Getenv(old) {
				return fmt.Errorf("%s and %s are the same setting, and have different values: leave out the latter", name, old)
			}
			if text == "" {
				name, text = old, os.Getenv(old)
			}
		}
		if text == "" {
			continue
		}
		if err := r.value.UnmarshalText([]byte(text)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		s.source[key] = "environment " + name
	}
	s.warnings = append(s.warnings, unknownVariables(s.table(), os.Environ())...)
	return nil
}

// unknownVariables warns of each variable that begins like one of hubcache's and isn't one. It
// is no error, because Kubernetes sets such variables in every pod beside a Service whose name
// is hubcache. Values are not shown: one could be a secret in the wrong place.
func unknownVariables(table []row, environ []string) (warnings []string) {
	known := otherVariables()
	for key, r := range leaves(table) {
		known = append(known, variable(key))
		if old := r.alias(key); old != "" {
			known = append(known, old)
		}
	}
	var ofKubernetes []string
	slices.Sort(environ)
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case !strings.HasPrefix(name, prefix) || value == "" || slices.Contains(known, name):
		case serviceLink(name, value):
			ofKubernetes = append(ofKubernetes, name)
		case secretName(name):
			warnings = append(warnings, name+" is ignored: a secret is never in the environment; name a file with it in "+variable("upstream.password_file"))
		default:
			w := name + " is ignored: no setting has that name"
			if like := nearest(name, known); like != "" {
				w += "; is " + like + " meant?"
			}
			warnings = append(warnings, w)
		}
	}
	if len(ofKubernetes) > 0 {
		warnings = append(warnings, strings.Join(ofKubernetes, ", ")+": ignored; Kubernetes sets them beside a Service of that name, unless the pod has enableServiceLinks: false")
	}
	return warnings
}

// serviceLink reports whether Kubernetes sets such a variable, as HUBCACHE_PORT=tcp://10.0.0.1:5000
// or HUBCACHE_SERVICE_HOST.
func serviceLink(name, value string) bool {
	return strings.Contains(name, "_SERVICE_HOST") || strings.Contains(name, "_SERVICE_PORT") ||
		strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://") ||
		strings.Contains(name, "_TCP") || strings.Contains(name, "_UDP")
}

// secretName reports whether a variable seems to be meant for a secret itself.
func secretName(name string) bool {
	for _, end := range []string{"_PASSWORD", "_TOKEN", "_PAT"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

// nearest returns the known name that a mistyped one is most like, "" if it is like none: if
// more than a quarter of the letters after the prefix, or three, would have to change.
func nearest(name string, known []string) (like string) {
	name = strings.TrimPrefix(name, prefix)
	best := max(3, len(name)/4) + 1
	for _, k := range known {
		if n := distance(name, strings.TrimPrefix(k, prefix)); n < best && n < len(name) {
			like, best = k, n
		}
	}
	return like
}

// distance is how many letters have to be inserted, deleted or replaced to make b of a
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		left := row[0] // of the row before
		row[0] = i + 1
		for j := range len(b) {
			replaced := left
			if a[i] != b[j] {
				replaced++
			}
			left = row[j+1]
			row[j+1] = min(replaced, row[j]+1, left+1)
		}
	}
	return row[len(b)]
}
