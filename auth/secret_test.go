package auth

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFileSaysWhatIsOddAndWhere: content that can't be a token is refused with what is odd and
// where, and no part of the content is in the error.
func TestFileSaysWhatIsOddAndWhere(t *testing.T) {
	const token = "dckr_pat_Zq7-kWxYv"
	for content, want := range map[string]string{
		`"` + token + `"`:              "in quotation marks",
		`'` + token + "'\n":            "in quotation marks",
		"“" + token + "”":              "in quotation marks",
		token[:9] + " " + token[9:]:    "character 10 is a blank",
		" " + token:                    "character 1 is a blank, the first",
		token + " \n":                  "character 19 is a blank, the last",
		token + "\u00a0":               "character 19 is a blank, the last",
		token + "\t# of jane\n":        "character 19 is a control character (U+0009)",
		"\ufeff" + token:               "character 1 is a control character (U+FEFF)",
		"Zq7\u200bkWxYv":               "character 4 is a control character (U+200B)",
		"Zq7\x00kWxYv":                 "character 4 is a control character (U+0000)",
		"Zq7\x1b[0m":                   "character 4 is a control character (U+001B)",
		"Zq7\xff":                      "character 4 is not text",
		token + "\n" + token + "\n":    "more than one line: the first ends after 18 characters",
		token + "\r\nsecond":           "more than one line: the first ends after 18 characters",
		"jane:" + token:                "the token begins only at character 6",
		"DOCKER_TOKEN=" + token + "\n": "the token begins only at character 14",
		"\n" + token:                   "more than one line: the first ends after 0 characters",
	} {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, content)
		_, err := NewFile("someone", path).Credential()
		fe, ok := errors.AsType[*FileError](err)
		if !ok || fe.Fault != FileMalformed || !strings.Contains(err.Error(), "can't be an access token: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", content, err, want)
			continue
		}
		for _, part := range []string{"Zq7", "kWxYv", "jane", "second"} {
			if strings.Contains(fe.Err.Error(), part) {
				t.Errorf("%q: the error has %q of it: %v", content, part, err)
			}
		}
	}
}

// TestFileTakesEveryTokenAndPassword: what may be a token or a password is taken.
func TestFileTakesEveryTokenAndPassword(t *testing.T) {
	for _, content := range []string{"dckr_pat_Zq7-kWxYv", "dckr_oat_x\n", "0b5d6c4e-1f1e-4a8c-9d6e-1b2c3d4e5f60\r\n\r\n", `pass"word'`, "\"", "pässwörd-ключ", "a=b:c#d", "\uFFFDx"} {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, content)
		if _, err := NewFile("someone", path).Credential(); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// TestFileFaultsAreToldApart: missing, unreadable and empty are three different faults.
func TestFileFaultsAreToldApart(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "empty"), "")
	write(t, filepath.Join(dir, "blank"), " \n\t\n")
	write(t, filepath.Join(dir, "closed"), "secret")
	if err := os.Chmod(filepath.Join(dir, "closed"), 0); err != nil {
		t.Fatal(err)
	}
	faults := map[string]FileFault{"none": FileMissing, "none/below": FileMissing, "closed/below": FileMissing, ".": FileUnreadable, "empty": FileEmpty, "blank": FileEmpty}
	if os.Geteuid() != 0 { // root reads everything
		faults["closed"] = FileUnreadable
	}
	for name, want := range faults {
		_, err := NewFile("someone", filepath.Join(dir, name)).Credential()
		if fe, ok := errors.AsType[*FileError](err); !ok || fe.Fault != want {
			t.Errorf("%s: %v; want %s", name, err, want)
		}
	}
	if got := faultOf(os.ErrPermission); got != FileUnreadable {
		t.Errorf("no permission: %s", got)
	}
}
