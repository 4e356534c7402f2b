package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"
)

// shownCommand is a command in docs/use/clients.md, and the block behind it.
var shownCommand = regexp.MustCompile("(?s)```sh\nhubcache (docker setup --for [^\n]*)\n```\n.*?\n```(?:toml|yaml)\n(.*?)```\n")

// shownFile is a block with a file in docs/use/clients.md.
var shownFile = regexp.MustCompile("(?s)```(toml|yaml|json)\n(.*?)```\n")

// TestFilesOfTheClientsPageCanBeRead: each file on the page is well-formed, also those of clients that
// no test runs.
func TestFilesOfTheClientsPageCanBeRead(t *testing.T) {
	page, err := os.ReadFile("../../docs/use/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := shownFile.FindAllStringSubmatch(string(page), -1)
	if len(shown) < 13 {
		t.Fatalf("the page has %d files", len(shown))
	}
	for _, m := range shown {
		kind, text := m[1], m[2]
		err := error(nil)
		switch kind {
		case "toml":
			err = toml.Unmarshal([]byte(text), &map[string]any{})
		case "json":
			err = json.Unmarshal([]byte(text), &map[string]any{})
		case "yaml":
			documents := yaml.NewDecoder(strings.NewReader(text))
			for err == nil {
				err = documents.Decode(&map[string]any{})
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
		}
		if err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
	}
}

// TestClientsPageShowsWhatSetupWrites: each file on the page is what docker setup prints, or writes.
func TestClientsPageShowsWhatSetupWrites(t *testing.T) {
	t.Setenv("HUBCACHE_CONFIG", os.DevNull)
	page, err := os.ReadFile("../../docs/use/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := shownCommand.FindAllStringSubmatch(string(page), -1)
	if len(shown) != 4 {
		t.Fatalf("the page has %d commands with a file, want those of containerd, podman, k3s and buildkit", len(shown))
	}
	for _, m := range shown {
		command, want := m[1], m[2]
		certs := t.TempDir()
		root := newRootCommand()
		args := strings.Fields(command)
		containerd := strings.Contains(command, "--for containerd")
		if containerd {
			args = append(args, "--certs-dir", certs, "--containerd", "/does/not/exist")
		}
		out := new(bytes.Buffer)
		root.SetArgs(args)
		root.SetOut(out)
		if err := root.Execute(); err != nil {
			t.Errorf("%s: %v", command, err)
		}
		got := out.String()
		if containerd {
			body, err := os.ReadFile(filepath.Join(certs, "ghcr.io", "hosts.toml"))
			if err != nil {
				t.Error(err)
			}
			_, got, _ = strings.Cut(string(body), "\n") // without the mark
		}
		if got != want {
			t.Errorf("%s\nwrites\n%s\nand the page has\n%s", command, got, want)
		}
	}
}
