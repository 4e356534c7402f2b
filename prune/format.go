package prune

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrNewerFormat means that a newer hubcache has written what this one was to read. Nothing
// was changed. The error's text says which version of the format is there.
var ErrNewerFormat = errors.New("a newer hubcache is needed")

// What prune keeps on disk has a version for each format: [usesVersion] and [holdsVersion].
// Version 1 is what commit a8918c7 wrote, and has no version in it, so that it is the same
// on disk as ever. A newer program reads every older version.
//
// A version rises only when an older program would misread the data, or lose something by
// writing it: a Record that an older program writes again has only the fields that it knows.
// A program that meets a newer version changes nothing, deletes no image, and says so.

// checkVersion compares the version that what has on disk with the newest that this program
// knows. found is the text that is there, "" for version 1.
// Errors: [ErrNewerFormat], also for a text that is no number.
func checkVersion(what, found string, known int) error {
	found = strings.TrimSpace(found)
	if found == "" {
		return nil
	}
	if v, err := strconv.Atoi(found); err == nil && 1 <= v && v <= known {
		return nil
	}
	return fmt.Errorf("%s: %w: the format is version %.20q, and this hubcache knows none above %d", what, ErrNewerFormat, found, known)
}
