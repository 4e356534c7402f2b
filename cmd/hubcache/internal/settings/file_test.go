package settings

import (
	"maps"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// FuzzFile: any file is either refused, with its name in every line of the error, or its
// settings, written to a file again, are the same.
func FuzzFile(f *testing.F) {
	example, err := os.ReadFile(examplePath)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Add([]byte("listen: [a:1, \"[::1]:2\"]\nbudget: 33.5%\ntags: {ttl: 1w, rules: [{match: 'a,b:*', refresh: true}]}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("tags: &t {ttl: 1s}\nquota: *t\n"))
	f.Add([]byte("min_free: 1e3\nupstream: {url: 'http://[::1]:5000'}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		isolate(t)
		one := Default()
		if _, err := decodeFile("x.yaml", b, one.table()); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "x.yaml:") {
					t.Errorf("a fault without its file: %q", line)
				}
			}
			return
		}
		again, err := yaml.Marshal(changed(one.table(), Default().table()))
		if err != nil {
			t.Fatal(err)
		}
		two := Default()
		if _, err := decodeFile("y.yaml", again, two.table()); err != nil {
			t.Fatalf("shown settings can't be read: %v\n%s", err, again)
		}
		if a, b := texts(one), texts(two); !maps.Equal(a, b) {
			t.Errorf("%v became %v", a, b)
		}
	})
}
