package hubcache

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHeavyTestsExist: each test that integration/heavy-tests.txt names is there, so that none is
// left out of `make unit` because it has another name now.
func TestHeavyTestsExist(t *testing.T) {
	list, err := os.ReadFile("integration/heavy-tests.txt")
	if err != nil {
		t.Fatal(err)
	}
	source := map[string][]byte{} // by package
	for line := range strings.Lines(string(list)) {
		words := strings.Fields(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		pkg, name := words[0], words[1]
		if source[pkg] == nil {
			files, _ := filepath.Glob(filepath.Join(pkg, "*_test.go"))
			for _, file := range files {
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				source[pkg] = append(source[pkg], b...)
			}
		}
		if !bytes.Contains(source[pkg], []byte("\nfunc "+name+"(t *testing.T) {")) {
			t.Errorf("package %s has no %s", pkg, name)
		}
	}
}
