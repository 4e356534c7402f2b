package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestFileAcceptsOnlyUsableSecrets(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	write(t, filepath.Join(dir, "plain"), "s3cr3t")
	write(t, filepath.Join(dir, "newline"), "s3cr3t\n")
	write(t, filepath.Join(dir, "crlf"), "s3cr3t\r\n")
	write(t, filepath.Join(dir, "empty"), "\n")
	write(t, filepath.Join(dir, "longest"), strings.Repeat("x", maxSecret))
	write(t, filepath.Join(dir, "long"), strings.Repeat("x", maxSecret+1))
	if err := os.Symlink("plain", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, wrong := range map[string]string{
		"plain": "", "newline": "", "crlf": "", "link": "", filepath.Join(dir, "plain"): "", "longest": "",
		"empty": "is empty", "long": "64 KiB", "none": "no such file", "fifo": "not a regular file", ".": "not a regular file",
	} {
		c, err := NewFile("someone", path).Credential()
		switch {
		case wrong == "":
			if err != nil || c.Version != 1 || path != "longest" && c.basic() != basicOf("s3cr3t") {
				t.Errorf("%s: %v, %v", path, c, err)
			}
		case err == nil || !strings.Contains(err.Error(), wrong) || !strings.Contains(err.Error(), filepath.Join(dir, path)):
			t.Errorf("%s: %v; want %q and the file's name", path, err, wrong)
		case c != Credential{}:
			t.Errorf("%s: a credential beside the error", path)
		}
	}
	if _, err := NewFile("some:one", "plain").Credential(); err == nil {
		t.Error("a colon in the user name")
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := NewFile("someone", "plain").Credential(); err == nil || !strings.Contains(err.Error(), "CREDENTIALS_DIRECTORY") {
		t.Errorf("no directory: %v", err)
	}
}

func TestReplacedFileIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, path := secretFile(t, "one")
		has := func(secret string, version uint64) {
			t.Helper()
			if v := f.Version(); v != version { // asked first: it must read the file by itself
				t.Fatalf("version %d; want %d", v, version)
			}
			c, err := f.Credential()
			if err != nil || c.basic() != basicOf(secret) || c.Version != version {
				t.Fatalf("version %d, %v; want %q, version %d", c.Version, err, secret, version)
			}
		}
		replace := func(secret string) {
			t.Helper()
			write(t, path+".new", secret)
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
		has("one", 1)
		replace("two")
		has("one", 1) // read less than 5 s ago
		time.Sleep(checkInterval)
		has("two", 2)
		replace("two") // another file, the same secret
		time.Sleep(checkInterval)
		has("two", 2)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(checkInterval)
		has("two", 2)
		if err := f.Reload(); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Reload without the file: %v", err)
		}
		has("two", 2)
		replace("six")
		if err := f.Reload(); err != nil {
			t.Fatal(err)
		}
		has("six", 3)
		replace("") // half replaced
		time.Sleep(checkInterval)
		has("six", 3)

		// Rewritten in place, with the same length: only its time differs.
		f, path = secretFile(t, "one")
		has("one", 1)
		at := time.Now().Add(time.Hour)
		write(t, path, "two")
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		time.Sleep(checkInterval)
		has("two", 2)
		write(t, path, "six")
		if err := os.Chtimes(path, at, at); err != nil { // as it was
			t.Fatal(err)
		}
		if err := f.Reload(); err != nil {
			t.Fatal(err)
		}
		has("six", 3)

		// A symbolic link that is replaced by one to another file, as secret managers do it.
		dir := filepath.Dir(path)
		write(t, filepath.Join(dir, "a"), "aaa")
		write(t, filepath.Join(dir, "b"), "bbb")
		link := filepath.Join(dir, "link")
		linkTo := func(to string) {
			t.Helper()
			if err := errors.Join(os.Symlink(to, link+".new"), os.Rename(link+".new", link)); err != nil {
				t.Fatal(err)
			}
		}
		linkTo("a")
		f = NewFile("someone", link)
		has("aaa", 1)
		linkTo("b")
		time.Sleep(checkInterval)
		has("bbb", 2)
	})
}

// The service may be started before its secret is there.
func TestFileMayAppearLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "pat")
		f := NewFile("someone", path)
		if _, err := f.Credential(); err == nil {
			t.Fatal("no error")
		}
		write(t, path, "late")
		time.Sleep(checkInterval)
		if c, err := f.Credential(); err != nil || c.Version != 1 {
			t.Errorf("%v, %v", c, err)
		}
	})
}

// TestSecretStaysSecret prints everything in every way, after a success, failures, a pause
// and a refusal.
func TestSecretStaysSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		show := func(values ...any) {
			for _, v := range values {
				for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
					fmt.Fprintf(&out, verb+"\n", v)
				}
				if b, err := json.Marshal(v); err == nil {
					out.Write(b)
				}
				log.Info("value", "v", v)
			}
		}
		f, _ := secretFile(t, secretText)
		c, err := f.Credential()
		if err != nil {
			t.Fatal(err)
		}
		show(c, &c, f, Credential{}, []Credential{c}, map[string]Credential{"k": c}, struct{ c Credential }{c}, struct{ C Credential }{c})
		up := newFakeUpstream()
		tr, logged := transport(up, f)
		for _, answer := range []func(*http.Request) *http.Response{
			func(r *http.Request) *http.Response { return up.issue(r) },
			func(*http.Request) *http.Response { return grantOf("topsecret token", "") },
			always(200, "topsecret"), always(500, "topsecret"), always(429, "topsecret"), always(401, "topsecret"),
		} {
			up.tokens = answer
			_, err := get(t, tr, fmt.Sprintf("/v2/r%p/manifests/1", &err))
			synctest.Wait()
			tr.Base, tr.tokens.base = nil, nil // the fake knows the secrets, since it checks them
			show(err, tr, tr.tokens, tr.login, tr.Stats())
			tr.Base, tr.tokens.base = up, up
			for e := err; e != nil; e = errors.Unwrap(e) {
				show(e.Error())
			}
			time.Sleep(2 * time.Minute)
		}
		out.WriteString(logged.String())
		if !strings.Contains(out.String(), "ERROR") || !strings.Contains(out.String(), "[hidden]") {
			t.Fatal("the refusal was not logged: this test checks nothing")
		}
		for _, secret := range []string{secretText, basicOf(secretText)[len("Basic "):], fmt.Sprintf("%x", secretText), "opaque-", "topsecret", "Authorization", "scope="} {
			if i := strings.Index(out.String(), secret); i >= 0 {
				t.Errorf("%q is in the output: …%s", secret, out.String()[max(0, i-200):min(out.Len(), i+60)])
			}
		}
	})
}

// TestEveryWayToReplaceTheFileIsNoticed: within a minute, however the secret was replaced, and
// even if the size, the time or the file itself is the one from before.
func TestEveryWayToReplaceTheFileIsNoticed(t *testing.T) {
	when := time.Unix(1_700_000_000, 0)
	put := func(t *testing.T, path, secret string) { // all files look alike, as in a Nix store
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(secret), 0o600), os.Chtimes(path, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	relink := func(t *testing.T, to, link string) {
		t.Helper()
		if err := errors.Join(os.Symlink(to, link+".new"), os.Rename(link+".new", link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, replace := range map[string]func(t *testing.T, dir, path string){
		"in place": func(t *testing.T, _, path string) { put(t, path, "two") },
		"in place, one byte": func(t *testing.T, _, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt([]byte("two"), 0)
			if err := errors.Join(err, f.Close(), os.Chtimes(path, when, when)); err != nil {
				t.Fatal(err)
			}
		},
		"through another name": func(t *testing.T, dir, path string) {
			if err := os.Link(path, filepath.Join(dir, "other")); err != nil {
				t.Fatal(err)
			}
			put(t, filepath.Join(dir, "other"), "two")
		},
		"by rename": func(t *testing.T, _, path string) {
			put(t, path+".new", "two")
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		},
		"by a link": func(t *testing.T, dir, path string) {
			put(t, filepath.Join(dir, "other"), "two")
			relink(t, "other", path)
		},
		"by a folder": func(t *testing.T, dir, _ string) {
			put(t, mkdir(t, dir+".new"), "two")
			if err := errors.Join(os.Rename(dir, dir+".old"), os.Rename(dir+".new", dir)); err != nil {
				t.Fatal(err)
			}
		},
		"removed and written again": func(t *testing.T, _, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			put(t, path, "two")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := mkdir(t, filepath.Join(t.TempDir(), "secrets"))
				put(t, path, "one")
				changesWithinAMinute(t, path, func() { replace(t, filepath.Dir(path), path) })
			})
		})
	}
	t.Run("as Kubernetes does", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			put(t, mkdir(t, filepath.Join(dir, "..2026_1")), "one")
			relink(t, "..2026_1", filepath.Join(dir, "..data"))
			relink(t, filepath.Join("..data", "token"), filepath.Join(dir, "token"))
			changesWithinAMinute(t, filepath.Join(dir, "token"), func() {
				put(t, mkdir(t, filepath.Join(dir, "..2026_2")), "two")
				relink(t, "..2026_2", filepath.Join(dir, "..data"))
				if err := os.RemoveAll(filepath.Join(dir, "..2026_1")); err != nil {
					t.Fatal(err)
				}
			})
		})
	})
}

// mkdir makes a folder and returns the path of a file token in it.
func mkdir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "token")
}

// changesWithinAMinute expects the secret one, and then, a minute after replace, two.
func changesWithinAMinute(t *testing.T, path string, replace func()) {
	t.Helper()
	f := NewFile("someone", path)
	if c, err := f.Credential(); err != nil || c.basic() != basicOf("one") {
		t.Fatalf("%v, %v", c, err)
	}
	replace()
	time.Sleep(time.Minute)
	if c, err := f.Credential(); err != nil || c.basic() != basicOf("two") || c.Version != 2 {
		t.Errorf("after a minute: version %d, %v, the secret is new: %v", c.Version, err, c.basic() == basicOf("two"))
	}
}
