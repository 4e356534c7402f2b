package prune

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrNewerFormat means that a newer hubcache has written data that this one can't read. Nothing
// was changed. The text of the error says which version of the format it has.
var ErrNewerFormat = errors.New("a newer hubcache is needed")

// Each of prune's formats on disk has a version: [usesVersion] and [holdsVersion]. Version 1
// is what commit a8918c7 wrote. It has no version number on disk, so that those files stay
// valid. A newer program reads every older version.
//
// The version rises only if an older program would misread the data, or would lose some of it
// by writing: a Record that an older program writes again has only the fields that it knows.
// A program that finds a newer version changes nothing, deletes no image, and says so.

// checkVersion compares the version that is on disk with the newest one that this program
// knows. found is the text on disk; "" means version 1.
// Errors: [ErrNewerFormat], also if found is not a number.
func checkVersion(found string, known int) error {
	found = strings.TrimSpace(found)
	if found == "" {
		return nil
	}
	if v, err := strconv.Atoi(found); err == nil && 1 <= v && v <= known {
		return nil
	}
	return fmt.Errorf("%w: the data has format version %.20q, and this one reads versions up to %d", ErrNewerFormat, found, known)
}
