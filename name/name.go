// Package name knows the grammar of repository names, tags and digests, as the OCI
// distribution-spec and image-spec define them. It reads them byte by byte, without
// regular expressions, because a check stands before every cached answer: none of the
// Valid functions allocates. ParseReference reads what people write, and may be slow.
package name

import "strings"

// MaxRepository is the length of the longest valid repository name, in bytes. With the
// name of the registry in front it has at most 255, the limit of distribution/reference
// and of a file name: the store makes file names of it.
const MaxRepository = 255 - len(hub)

// MaxParts is how many components a repository of any registry may have: GitLab's have the most,
// a group with twenty levels of subgroups, a project, and two more for the image.
const MaxParts = 32

const (
	hub     = "docker.io/"
	library = "library/" // Docker Hub's folder of official images
)

// ValidRepository reports whether s is the name of a repository, without a registry in
// front: at most MaxRepository bytes, in components of
// [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)* with slashes between them.
func ValidRepository(s string) bool {
	if len(s) > MaxRepository {
		return false
	}
	for component := range strings.SplitSeq(s, "/") {
		if !validComponent(component) {
			return false
		}
	}
	return true
}

// CanExist reports whether the registry at host, which may have a port, can have a repository of
// that valid name. On Docker Hub a name has two components, the account's and the repository's.
func CanExist(host, repository string) bool {
	host, _, _ = strings.Cut(host, ":")
	parts := strings.Count(repository, "/") + 1
	if host == "docker.io" || strings.HasSuffix(host, ".docker.io") {
		return parts == 2
	}
	return parts <= MaxParts
}

// IsRegistry reports whether the first component of a whole name is a registry, and not a folder of
// Docker Hub: whether it has a dot or a port, or is localhost.
func IsRegistry(component string) bool {
	if component == "" || component[0] == '.' || component[0] == ':' {
		return false // no host begins with either
	}
	return strings.IndexByte(component, '.') > 0 || strings.IndexByte(component, ':') > 0 || component == "localhost"
}

func validComponent(s string) bool {
	if s == "" || !alphanumeric(s[0]) || !alphanumeric(s[len(s)-1]) {
		return false
	}
	// The last byte is alphanumeric, so that the loop below can look one byte ahead.
	for i := 1; i < len(s)-1; i++ {
		c := s[i]
		if alphanumeric(c) {
			continue
		}
		start := i
		for s[i+1] == c {
			i++
		}
		switch n := i - start + 1; {
		case c == '-', c == '.' && n == 1, c == '_' && n <= 2:
		default:
			return false
		}
		if !alphanumeric(s[i+1]) {
			return false
		}
	}
	return true
}

// ValidTag reports whether s is a tag: [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}.
func ValidTag(s string) bool {
	if s == "" || len(s) > 128 || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(alphanumeric(c) || c >= 'A' && c <= 'Z' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// ValidDigest reports whether s is a sha256 or sha512 digest with its hexadecimal digits
// in lower case. Other algorithms of the image-spec are not valid here.
func ValidDigest(s string) bool {
	algorithm, hex, _ := strings.Cut(s, ":")
	if !(algorithm == "sha256" && len(hex) == 64 || algorithm == "sha512" && len(hex) == 128) {
		return false
	}
	for i := range len(hex) {
		if c := hex[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// WithLibrary puts "library/" in front of a name of one component, which on Docker Hub
// means an official image: "redis" is "library/redis". All other names, and the empty
// one, are returned as they are.
func WithLibrary(s string) string {
	if s == "" || strings.Contains(s, "/") {
		return s
	}
	return library + s
}

// NormalizePattern returns a pattern for repositories, or for repositories and tags, in
// the form in which names are matched: without "docker.io/" in front, and with "library/"
// where it is for an official image. The pattern "*", which means every repository, stays.
func NormalizePattern(pattern string) string {
	pattern = strings.TrimPrefix(pattern, hub)
	if pattern == "*" {
		return pattern
	}
	return WithLibrary(pattern)
}
