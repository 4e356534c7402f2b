// Package auth is Docker's token flow as an http.RoundTripper.
package auth

// File is a credential whose secret lives in a file, looked at again when it changes.
type File struct{}

// NewFile returns the credential of username with the secret in path.
// A relative path is looked up in $CREDENTIALS_DIRECTORY.
func NewFile(username, path string) *File { return &File{} }
