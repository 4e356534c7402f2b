package adminclient

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// TestFindTakesTheFirstThatIsSet: --admin, then HUBCACHE_ADMIN, then admin.listen of the
// settings, then the packaged socket, then the default; and the client says which it is.
func TestFindTakesTheFirstThatIsSet(t *testing.T) {
	dir := t.TempDir()
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	socket := filepath.Join(dir, "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	named := file("admin: {listen: [127.0.0.1:7001, 127.0.0.1:7002]}\n")
	for _, c := range []struct {
		name, given, admin, listen, config, socket string
		addr, source                               string
	}{
		{name: "flag", given: "127.0.0.1:1", admin: "127.0.0.1:2", listen: "127.0.0.1:3", config: named, socket: socket, addr: "127.0.0.1:1", source: "from --admin"},
		{name: "flag, and a settings file that isn't there", given: "127.0.0.1:1", config: "/nowhere.yaml", addr: "127.0.0.1:1", source: "from --admin"},
		{name: "variable", admin: "127.0.0.1:2", listen: "127.0.0.1:3", config: named, socket: socket, addr: "127.0.0.1:2", source: "from $HUBCACHE_ADMIN"},
		{name: "variable of the setting", listen: "127.0.0.1:3", config: named, socket: socket, addr: "127.0.0.1:3", source: "from admin.listen, environment HUBCACHE_ADMIN_LISTEN"},
		{name: "file", config: named, socket: socket, addr: "127.0.0.1:7001", source: "from admin.listen, file " + named + ":1"},
		{name: "file with a socket", config: file("admin: {listen: [127.0.0.1:7001, 'unix:" + socket + "']}\n"), addr: "unix:" + socket, source: "from admin.listen"},
		{name: "file with every address", config: file("admin: {listen: 0.0.0.0:7001}\n"), addr: "127.0.0.1:7001", source: "from admin.listen"},
		{name: "file with every IPv6 address", config: file("admin: {listen: '[::]:7001'}\n"), addr: "[::1]:7001", source: "from admin.listen"},
		{name: "file with a port", config: file("admin: {listen: ':7001'}\n"), addr: "127.0.0.1:7001", source: "from admin.listen"},
		{name: "packaged socket", config: file(""), socket: socket, addr: "unix:" + socket, source: "from the packaged socket"},
		{name: "no address in the file", config: file("admin: {listen: []}\n"), socket: socket, addr: "unix:" + socket, source: "from the packaged socket"},
		{name: "default", config: file(""), addr: "127.0.0.1:5001", source: "from the default"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("HUBCACHE_ADMIN", c.admin)
			t.Setenv("HUBCACHE_ADMIN_LISTEN", c.listen)
			if c.socket == "" {
				c.socket = filepath.Join(dir, "none")
			}
			client, err := Finder{Given: c.given, Load: (&settings.Loader{File: c.config}).Load, Socket: c.socket}.Find()
			if err != nil {
				t.Fatal(err)
			}
			if client.Addr() != c.addr || !strings.HasPrefix(client.String(), c.addr+" ("+c.source) {
				t.Errorf("it asks %s, want %s (%s", client, c.addr, c.source)
			}
		})
	}
}

// TestFindFails: a settings file that can't be read, an address that is none, and settings by
// which the server answers nobody are wrong usage.
func TestFindFails(t *testing.T) {
	dir := t.TempDir()
	empty, none := filepath.Join(dir, "empty.yaml"), filepath.Join(dir, "none")
	if err := os.WriteFile(empty, []byte("admin: {listen: []}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HUBCACHE_ADMIN", "")
	t.Setenv("HUBCACHE_ADMIN_LISTEN", "")
	for _, c := range []struct{ given, config, says string }{
		{"", "/nowhere.yaml", "/nowhere.yaml: no such file"},
		{"", dir, "is a directory"},
		{"nonsense", empty, "--admin"},
		{"", empty, "admin.listen is empty (file " + empty + ":1)"},
	} {
		_, err := Finder{Given: c.given, Load: (&settings.Loader{File: c.config}).Load, Socket: none}.Find()
		if _, usage := errors.AsType[settings.UsageError](err); !usage || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestPackagedSocketIsNotThatOfAnotherServer: who has said which server is meant is not sent to the
// packaged one.
func TestPackagedSocketIsNotThatOfAnotherServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("HUBCACHE_ADMIN", "")
	if c := (Finder{Socket: socket}).Packaged(); c == nil || c.Addr() != "unix:"+socket {
		t.Errorf("%v", c)
	}
	if c := (Finder{Socket: socket, Given: "127.0.0.1:1"}).Packaged(); c != nil {
		t.Errorf("beside --admin: %s", c)
	}
	if c := (Finder{Socket: socket + "x"}).Packaged(); c != nil {
		t.Errorf("where there is none: %s", c)
	}
	t.Setenv("HUBCACHE_ADMIN", "127.0.0.1:1")
	if c := (Finder{Socket: socket}).Packaged(); c != nil {
		t.Errorf("beside HUBCACHE_ADMIN: %s", c)
	}
}

// TestTokenGoesOnlyToTheServerOfTheSettings, and not to another one that --admin or HUBCACHE_ADMIN
// names, nor over a unix socket, which needs none.
func TestTokenGoesOnlyToTheServerOfTheSettings(t *testing.T) {
	dir := t.TempDir()
	secret, config := filepath.Join(dir, "token"), filepath.Join(dir, "config.yaml")
	body := "admin: {listen: 127.0.0.1:7001, token_file: " + secret + "}\n"
	if err := errors.Join(os.WriteFile(secret, []byte("s3cret\n"), 0o600), os.WriteFile(config, []byte(body), 0o600)); err != nil {
		t.Fatal(err)
	}
	socket := "unix:" + filepath.Join(dir, "none")
	for _, c := range []struct{ given, admin, listen, want string }{
		{want: "s3cret"},
		{listen: "127.0.0.1:7002", want: "s3cret"},
		{listen: socket},
		{given: "cache.example:5001"},
		{admin: "cache.example:5001"},
	} {
		t.Setenv("HUBCACHE_ADMIN", c.admin)
		t.Setenv("HUBCACHE_ADMIN_LISTEN", c.listen)
		client, err := Finder{Given: c.given, Load: (&settings.Loader{File: config}).Load, Socket: filepath.Join(dir, "none")}.Find()
		if err != nil {
			t.Fatal(err)
		}
		if client.token != c.want {
			t.Errorf("%+v: the token sent is %q", c, client.token)
		}
	}
}
