package prune

import (
	"context"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/hubcache/hubcache/compose"
)

// withKeepFiles returns the policy with what its compose files name.
// Errors: those of [compose.Images].
func (p Policy) withKeepFiles(ctx context.Context) (Policy, error) {
	p.fromFiles = nil
	for _, file := range p.KeepFiles {
		images, err := compose.Images(ctx, file)
		if err != nil {
			return Policy{}, fmt.Errorf("prune: keep file: %w", err)
		}
		for _, img := range images {
			p.fromFiles = append(p.fromFiles, imagePattern(img.Name, file))
		}
	}
	return p, nil
}

// patterns returns what the policy keeps.
func (p Policy) patterns() []pattern {
	var all []pattern
	for _, glob := range p.Keep {
		all = append(all, parsePattern(glob))
	}
	return append(all, p.fromFiles...)
}

// unmatched explains to people which entries of the policy keep none of the images.
func (p Policy) unmatched(images []Image) []string {
	matches := func(p pattern) bool { return slices.ContainsFunc(images, p.keeps) }
	var all []string
	for _, glob := range p.Keep {
		if !matches(parsePattern(glob)) {
			all = append(all, fmt.Sprintf("keep has %q, which matches no image of this host", glob))
		}
	}
	for _, file := range p.KeepFiles {
		ofFile := func(p pattern) bool { return p.file == file }
		if !slices.ContainsFunc(p.fromFiles, func(p pattern) bool { return ofFile(p) && matches(p) }) {
			all = append(all, fmt.Sprintf("keep file %s names no image that is on this host", file))
		}
	}
	return all
}

// pattern is one entry of the keep list, or an image that a compose file names.
type pattern struct {
	text              string
	file              string // the compose file; "" for the keep list
	name, tag, digest string
	variable          *variablePattern // set if the image's name has variables that are set nowhere
}

// parsePattern splits a pattern of the keep list.
func parsePattern(s string) pattern {
	p := pattern{text: s}
	s, p.digest, _ = strings.Cut(s, "@")
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		s, p.tag = s[:i], s[i+1:]
	}
	p.name = s
	return p
}

// imagePattern is the pattern of an image that a compose file names.
func imagePattern(name, file string) pattern {
	p := parsePattern(name)
	if strings.Contains(name, compose.Any) {
		p = pattern{text: strings.ReplaceAll(name, compose.Any, "${…}"), variable: newVariablePattern(name)}
	}
	p.file = file
	return p
}

// why explains to people why the pattern keeps an image.
func (p pattern) why() string {
	if p.file != "" {
		return p.file + " names " + p.text
	}
	return "the keep list has " + p.text
}

// keeps reports whether the pattern matches img.
func (p pattern) keeps(img Image) bool {
	if p.variable != nil {
		return p.variable.keeps(img)
	}
	if p.isID(img) {
		return true
	}
	for _, ref := range img.Tags {
		named, err := reference.ParseNormalizedNamed(ref)
		if err != nil || !p.matchesName(named) {
			continue
		}
		tagged, ok := named.(reference.Tagged)
		if ok && (p.tag == "" || matches(p.tag, tagged.Tag())) && p.digest == "" || p.digest != "" && slices.Contains(img.Manifests, p.digest) {
			return true
		}
	}
	for _, ref := range img.Digests {
		named, err := reference.ParseNormalizedNamed(ref)
		if err != nil || !p.matchesName(named) {
			continue
		}
		_, digest, _ := strings.Cut(ref, "@")
		switch {
		case p.digest != "":
			if p.digest == digest || slices.Contains(img.Manifests, p.digest) {
				return true
			}
		case p.tag == "" || len(img.Tags) == 0:
			return true
		}
	}
	return false
}

// shortID is the length of the IDs that docker prints.
const shortID = 12

// isID reports whether the pattern is the image's ID, its digest, or the beginning of one.
func (p pattern) isID(img Image) bool {
	hex := strings.TrimPrefix(p.text, "sha256:")
	if len(hex) < shortID || !isHex(hex) {
		return false
	}
	digests := append([]string{img.ID}, img.Manifests...)
	for _, ref := range img.Digests {
		_, digest, _ := strings.Cut(ref, "@")
		digests = append(digests, digest)
	}
	return slices.ContainsFunc(digests, func(d string) bool { return strings.HasPrefix(d, "sha256:"+hex) })
}

// matchesName compares the pattern with each spelling of the name.
func (p pattern) matchesName(named reference.Named) bool {
	return slices.ContainsFunc(spellings(named), func(name string) bool { return matches(p.name, name) })
}

// spellings returns all names that Docker takes for this repository. Docker Hub's may have the
// host docker.io, index.docker.io or none, and its official images library/ or not.
func spellings(named reference.Named) []string {
	const hub = "docker.io"
	if reference.Domain(named) != hub {
		return []string{named.Name()}
	}
	var all []string
	paths := []string{reference.Path(named)}
	if short, official := strings.CutPrefix(paths[0], "library/"); official {
		paths = append(paths, short)
	}
	for _, path := range paths {
		all = append(all, path, hub+"/"+path, "index."+hub+"/"+path)
	}
	return all
}

func matches(glob, s string) bool {
	ok, err := path.Match(glob, s)
	return ok && err == nil
}

// String returns the pattern as it was written.
func (p pattern) String() string { return p.text }

// variablePattern is an image's name with variables that are set nowhere. Each of them is
// whatever could stand there, so that too many images are kept rather than too few.
type variablePattern struct {
	whole *regexp.Regexp
	// names match the repository if the tag and the digest aren't known: each is the pattern up
	// to a place where a tag or a digest could begin.
	names []*regexp.Regexp
	// everyTag says that the pattern has neither a tag nor a digest, and so keeps each.
	everyTag bool
}

// newVariablePattern makes the pattern from an image's name with [compose.Any] in it.
func newVariablePattern(name string) *variablePattern {
	last := name[strings.LastIndexByte(name, '/')+1:]
	p := &variablePattern{whole: variableExpression(name), everyTag: !strings.ContainsAny(last, ":@")}
	for i := 0; i <= len(name); i++ {
		before, after := name[:i], name[i:]
		if strings.Contains(after, "/") {
			continue // the name of the repository goes on
		}
		switch {
		case after == "" || after[0] == ':' || after[0] == '@':
			p.names = append(p.names, variableExpression(before))
		case strings.HasPrefix(after, compose.Any) && (!strings.Contains(after, ":") || strings.Contains(after, "@")):
			// The variable may end the name of the repository and begin the tag, unless a colon
			// follows: that one begins the tag.
			p.names = append(p.names, variableExpression(before+compose.Any))
		}
	}
	return p
}

// variableExpression matches any text for each variable.
func variableExpression(name string) *regexp.Regexp {
	parts := strings.Split(name, compose.Any)
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile("^(?s:" + strings.Join(parts, ".*") + ")$")
}

// keeps reports whether img could be what is meant. An image without a name never is.
func (p *variablePattern) keeps(img Image) bool {
	for _, ref := range slices.Concat(img.Tags, img.Digests) {
		named, err := reference.ParseNormalizedNamed(ref)
		if err != nil {
			continue
		}
		for _, name := range spellings(named) {
			suffix := strings.TrimPrefix(named.String(), named.Name())
			if p.whole.MatchString(name+suffix) || p.everyTag && p.whole.MatchString(name) {
				return true
			}
			_, digested := named.(reference.Digested)
			tagUnknown := digested && len(img.Tags) == 0
			if tagUnknown && slices.ContainsFunc(p.names, func(e *regexp.Regexp) bool { return e.MatchString(name) }) {
				return true
			}
		}
	}
	return false
}
