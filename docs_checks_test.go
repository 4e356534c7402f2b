package hubcache

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// page is a document, taken apart.
type page struct {
	path    string   // from the root of the repository, with slashes
	text    string   // all of it
	prose   string   // without code blocks
	code    []string // the lines of code blocks, continued lines joined, comments cut off
	spans   []string // what stands between backticks in the prose
	anchors []string // of the headings
}

var (
	codeSpan = regexp.MustCompile("`([^`]+)`")
	heading  = regexp.MustCompile(`(?m)^#+ +(.+?)[ #]*$`)
	comment  = regexp.MustCompile(`(?:^|\s)#.*`)
)

func readMarkdown(path, text string) page {
	p := page{path: path, text: text}
	var prose, code strings.Builder
	fenced, indented, blank := false, false, true
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		indented = !fenced && strings.HasPrefix(line, "    ") && (blank || indented)
		blank = trimmed == ""
		switch {
		case strings.HasPrefix(trimmed, "```"):
			fenced = !fenced
		case fenced || indented:
			if before, continues := strings.CutSuffix(trimmed, `\`); continues {
				code.WriteString(before)
			} else {
				code.WriteString(trimmed + "\n")
			}
		default:
			prose.WriteString(line)
		}
	}
	p.prose = prose.String()
	for line := range strings.Lines(code.String()) {
		p.code = append(p.code, strings.TrimSpace(comment.ReplaceAllString(line, "")))
	}
	p.readSpans()
	for _, m := range heading.FindAllStringSubmatch(p.prose, -1) {
		p.anchors = append(p.anchors, anchor(m[1], p.anchors))
	}
	return p
}

// readComments takes the comments of a file of settings as prose.
func readComments(path, text string) page {
	p := page{path: path, text: text}
	for line := range strings.Lines(text) {
		p.prose += strings.TrimLeft(line, "# ")
	}
	p.readSpans()
	return p
}

func (p *page) readSpans() {
	for paragraph := range strings.SplitSeq(p.prose, "\n\n") {
		for _, m := range codeSpan.FindAllStringSubmatch(paragraph, -1) {
			p.spans = append(p.spans, strings.Join(strings.Fields(m[1]), " "))
		}
	}
}

var notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)

// anchor makes the anchor of a heading as GitHub and Forgejo do.
func anchor(heading string, taken []string) string {
	name := strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
	unique := name
	for n := 1; slices.Contains(taken, unique); n++ {
		unique = fmt.Sprintf("%s-%d", name, n)
	}
	return unique
}

// facts is what documents are compared with.
type facts struct {
	tests    []string // the names of tests, fuzz tests, benchmarks and examples
	settings []string // dotted keys, those of sections included
	files    []string // slash-separated paths from the root
	anchors  map[string][]string
	command  func(path string) (command, bool) // "hubcache docker prune", if there is one
}

func (f facts) faults(p page) []string {
	return slices.Concat(f.wrongTests(p), f.wrongCommands(p), f.wrongSettings(p), f.wrongFiles(p), f.wrongLinks(p))
}

var (
	testName    = regexp.MustCompile(`\b((?:Test|Fuzz|Benchmark)[A-Z]\w*)(\*?)`)
	testPattern = regexp.MustCompile(`(?m)-(run|bench|fuzz)[ =]'?([^\s'` + "`" + `)]+)`)
)

// wrongTests finds names of tests that don't exist, and patterns of go test that no test
// matches. `TestKill*` means any test that begins with TestKill.
func (f facts) wrongTests(p page) (faults []string) {
	for _, m := range testName.FindAllStringSubmatch(p.text, -1) {
		name, family := m[1], m[2] != ""
		if !slices.ContainsFunc(f.tests, func(t string) bool { return t == name || family && strings.HasPrefix(t, name) }) {
			faults = append(faults, fmt.Sprintf("there is no test %s", m[0]))
		}
	}
	for _, m := range testPattern.FindAllStringSubmatch(p.text, -1) {
		pattern, err := regexp.Compile(m[2])
		if m[2] == "^$" {
			continue // no test: only benchmarks are to run
		}
		if err != nil || !slices.ContainsFunc(f.tests, pattern.MatchString) {
			faults = append(faults, fmt.Sprintf("no test matches -%s %s", m[1], m[2]))
		}
	}
	return faults
}

var (
	// The program's name where a shell, a unit file or a list expects a command.
	invocation = regexp.MustCompile(`(?:^|[$|;&(=]|^- |\bsudo )\s*(?:\S*bin/)?hubcache((?:\s+[^\s|;&<>()]+)*)`)
	verb       = regexp.MustCompile(`^[a-z][a-z-]*$`)
	// `hubcache docker prune`, `hold` and `watch`: hold and watch stand beside prune.
	listed = regexp.MustCompile("`hubcache ([^`]+)`((?:,?(?:\\s+and|\\s+or)?\\s+`[a-z-]+`)+)")
)

// wrongCommands finds commands and flags of hubcache that don't exist.
func (f facts) wrongCommands(p page) (faults []string) {
	check := func(args []string) {
		if fault := f.wrongCommand(args); fault != "" {
			faults = append(faults, fault)
		}
	}
	for _, line := range slices.Concat(p.code, p.spans) {
		for _, m := range invocation.FindAllStringSubmatch(line, -1) {
			check(strings.Fields(m[1]))
		}
	}
	for _, m := range listed.FindAllStringSubmatch(p.prose, -1) {
		path := strings.Fields(m[1])
		if end := slices.IndexFunc(path, func(s string) bool { return !verb.MatchString(s) }); end >= 0 {
			path = path[:end]
		}
		for _, sibling := range codeSpan.FindAllStringSubmatch(m[2], -1) {
			check(append(slices.Clone(path[:max(0, len(path)-1)]), sibling[1]))
		}
	}
	return faults
}

func (f facts) wrongCommand(args []string) string {
	name := "hubcache"
	c, ok := f.command(name)
	for ok && c.subcommands && len(args) > 0 && verb.MatchString(args[0]) {
		name += " " + args[0]
		args = args[1:]
		c, ok = f.command(name)
	}
	if !ok {
		return fmt.Sprintf("there is no command %q", name)
	}
	for _, arg := range args {
		flag, isFlag := strings.CutPrefix(arg, "--")
		flag, _, _ = strings.Cut(flag, "=")
		if isFlag && flag == "" {
			break // what follows belongs to another command
		}
		if isFlag && !slices.Contains(c.flags, flag) {
			return fmt.Sprintf("%q has no flag --%s", name, flag)
		}
	}
	return ""
}

var (
	dotted = regexp.MustCompile(`^(?:settings\.)?([a-z][a-z_]*(?:\.[a-z][a-z_]*)+)(?:\.\*)?(?:(?::| =).*)?$`)
	// A word with an underscore is a setting's last part.
	underscored = regexp.MustCompile(`^([a-z]+(?:_[a-z]+)+)(?::.*)?$`)
	// What ends like this is a file or a host.
	notASetting = regexp.MustCompile(`\.(?:md|go|mod|sum|yaml|yml|json|toml|conf|db|bad|damaged|nix|lock|service|socket|timer|d|sh|io|com|org)$`)
	// What looks like a setting and belongs to another program or another document.
	foreign = []string{
		"builder.gc", "proxy_cache", "proxy_cache_lock", // dockerd, nginx
		"credentials.username",                                                          // an option of the NixOS module
		"services.hubcache", "services.hubcache.registries", "services.hubcache.shared", // the NixOS module
		"expires_in",   // a field of a token service's answer
		"sshd_config",  // a file of OpenSSH
		"dial_timeout", // in containerd's hosts.toml
	}
)

// wrongSettings finds settings, in backticks, that don't exist.
func (f facts) wrongSettings(p page) (faults []string) {
	for _, span := range p.spans {
		m := dotted.FindStringSubmatch(span)
		same := func(key string) bool { return key == m[1] }
		if m == nil {
			m = underscored.FindStringSubmatch(span)
			same = func(key string) bool { return path.Ext("."+key) == "."+m[1] }
		}
		if m == nil || notASetting.MatchString(m[1]) || slices.Contains(foreign, m[1]) || strings.HasPrefix(m[1], "hubcache_") || strings.HasPrefix(m[1], "registry_proxy_") {
			continue
		}
		if !slices.ContainsFunc(f.settings, same) {
			faults = append(faults, fmt.Sprintf("there is no setting %s", m[1]))
		}
	}
	return faults
}

var repositoryPath = regexp.MustCompile(`^(?:\./)?([\w.*-]+(?:/[\w.*-]+)+)/?$`)

// wrongFiles finds paths, in backticks or as ./path in code, that begin with a directory of
// the repository and lead nowhere.
func (f facts) wrongFiles(p page) (faults []string) {
	candidates := slices.Clone(p.spans)
	for _, line := range p.code {
		for word := range strings.FieldsSeq(line) {
			if strings.HasPrefix(word, "./") {
				candidates = append(candidates, word)
			}
		}
	}
	for _, candidate := range candidates {
		m := repositoryPath.FindStringSubmatch(candidate)
		if m == nil {
			continue
		}
		top, _, _ := strings.Cut(m[1], "/")
		if f.exists(top) && !f.exists(m[1]) && !strings.HasSuffix(m[1], "/...") {
			faults = append(faults, fmt.Sprintf("there is no file %s", m[1]))
		}
	}
	return faults
}

// exists says whether a file or directory matches a pattern of path.Match.
func (f facts) exists(pattern string) bool {
	depth := strings.Count(pattern, "/") + 1
	return slices.ContainsFunc(f.files, func(file string) bool {
		parts := strings.Split(file, "/")
		ok, _ := path.Match(pattern, strings.Join(parts[:min(depth, len(parts))], "/"))
		return ok
	})
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)|(?m:^\[[^\]]+\]:\s+(\S+))`)

// wrongLinks finds links to files and headings that don't exist. It doesn't look at links
// to other sites.
func (f facts) wrongLinks(p page) (faults []string) {
	if path.Ext(p.path) != ".md" {
		return nil
	}
	for _, m := range link.FindAllStringSubmatch(codeSpan.ReplaceAllString(p.prose, ""), -1) {
		target := m[1] + m[2]
		if strings.Contains(target, ":") {
			continue
		}
		file, fragment, _ := strings.Cut(target, "#")
		if file == "" {
			file = p.path
		} else {
			file = path.Join(path.Dir(p.path), file)
		}
		switch {
		case file != "." && !f.exists(file):
			faults = append(faults, fmt.Sprintf("the link to %s leads to no file", target))
		case fragment != "" && !slices.Contains(f.anchors[file], fragment):
			faults = append(faults, fmt.Sprintf("the link to %s leads to no heading", target))
		}
	}
	return faults
}

var documentPath = regexp.MustCompile(`\bdocs/[\w/.-]+\.(?:md|yaml|svg)\b`)

// wrongDocuments finds names of pages that don't exist in a text of any kind.
func wrongDocuments(text string, files []string) (faults []string) {
	for _, name := range documentPath.FindAllString(text, -1) {
		if !slices.Contains(files, name) {
			faults = append(faults, fmt.Sprintf("there is no page %s", name))
		}
	}
	return faults
}

// TestDocumentChecksCanFail shows each check a fault and, beside it, what is right.
func TestDocumentChecksCanFail(t *testing.T) {
	help := map[string]string{
		"hubcache":              "\nUsage:\n  hubcache [flags]\n  hubcache [command]\n\nAvailable Commands:\n  docker  …\n",
		"hubcache stats":        "\nUsage:\n  hubcache stats [flags]\n\nFlags:\n      --json   …\n  -w, --watch duration   …\n",
		"hubcache docker":       "\nUsage:\n  hubcache docker [command]\n\nAvailable Commands:\n  hold  …\n",
		"hubcache docker hold":  "\nUsage:\n  hubcache docker hold -- COMMAND [flags]\n",
		"hubcache docker watch": "\nUsage:\n  hubcache docker watch [flags]\n",
	}
	known := facts{
		tests:    []string{"TestKillAtRandomInstants", "FuzzBudget", "BenchmarkOpen"},
		settings: []string{"budget", "min_free", "limits", "limits.orphans", "upstream", "upstream.private"},
		files:    []string{"README.md", "docs/use/a.md", "docs/b.md", "storage/store.go"},
		anchors:  map[string][]string{"docs/b.md": readMarkdown("docs/b.md", "# One, two!\n\n## One two\n").anchors},
		command: func(path string) (command, bool) {
			// The program answers a word that is no command with the help of what precedes it.
			for help[path] == "" && strings.Contains(path, " ") {
				return readHelp(path, help[path[:strings.LastIndex(path, " ")]])
			}
			return readHelp(path, help[path])
		},
	}
	for _, test := range []struct {
		text string
		want []string
	}{
		{text: "TestKill*, TestKillAtRandomInstants, `FuzzBudget` and `go test -run '^$' -bench Open`\n"},
		{"| TestKill | TestGone* |\n", []string{"there is no test TestKill", "there is no test TestGone*"}},
		{"`go test -fuzz Budgets ./lru`\n", []string{"no test matches -fuzz Budgets"}},

		{text: "hubcache is a cache; `hubcache stats --watch=5s`, `hubcache docker hold -- make --all`; `hubcache docker hold`, and `watch`\n"},
		{text: "```sh\n$ sudo hubcache stats \\\n    --json   # as hubcache sees it\nusermod -aG hubcache jane\nUser=hubcache\n```\n"},
		{"`hubcache purge redis`\n", []string{`there is no command "hubcache purge"`}},
		{"`hubcache\ndocker prune`\n", []string{`there is no command "hubcache docker prune"`}},
		{"`hubcache docker hold`, `watch` or\n`prune`\n", []string{`there is no command "hubcache docker prune"`}},
		{"Text:\n\n    a && hubcache warm\n", []string{`there is no command "hubcache warm"`}},
		{"```\nExecStart=/usr/bin/hubcache stats \\\n  --xml\n```\n", []string{`"hubcache stats" has no flag --xml`}},

		{text: "`limits.orphans`, `limits.*`, `upstream.private: [a]`, `settings.upstream.private = [ ]`, `min_free`, `hosts.toml`, `docker.io`\n"},
		{"`limit.orphans`, `upstream.public: []`\n", []string{"there is no setting limit.orphans", "there is no setting upstream.public"}},
		{"`max_free`, `limits.max`\n", []string{"there is no setting max_free", "there is no setting limits.max"}},

		{text: "`storage/store.go`, `storage/*.go`, `elsewhere/x.go`, `go test ./storage/...`\n"},
		{"`storage/room.go`\n\n    go run ./storage/tool\n", []string{"there is no file storage/room.go", "there is no file storage/tool"}},

		{text: "[a](../b.md), [b](../b.md#one-two), [c](../b.md#one-two-1), [d](..), [e](https://x.org/#y), ![f](../../README.md), `[g](h)`\n"},
		{"[a](b.md), ![b](../c.svg)\n\n[c]: ../d.md\n", []string{"the link to b.md leads to no file", "the link to ../c.svg leads to no file", "the link to ../d.md leads to no file"}},
		{"[a](../b.md#three) [b](#here)\n", []string{"the link to ../b.md#three leads to no heading", "the link to #here leads to no heading"}},
	} {
		if got := known.faults(readMarkdown("docs/use/a.md", test.text)); !slices.Equal(got, test.want) {
			t.Errorf("%q:\ngot  %q\nwant %q", test.text, got, test.want)
		}
	}
	comments := readComments(exampleConfig, "# See `hubcache\n# purge`.\nbudget: 1 # `no_such`\n")
	if got := known.faults(comments); len(got) != 2 {
		t.Errorf("comments of a settings file: %q", got)
	}
	if got := wrongDocuments("// docs/use/a.md and docs/c.md", known.files); len(got) != 1 {
		t.Errorf("pages that sources name: %q", got)
	}
}
