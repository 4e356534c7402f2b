// Package auth is Docker's token flow as an http.RoundTripper.
//
// A Transport serves one upstream registry. It asks the registry's token service for
// a token per repository, with the credential from a File where there is one, and puts
// it on requests to the registry's own host and on no others.
//
// The protocol is distribution's "Token Authentication Specification"; the challenge
// syntax is RFC 9110 §11.6.1. Only pull is ever asked: a read-only access token is
// refused by Docker Hub when it asks for more.
//
// No secret and no token appears in an error, a log line or a formatted value of this
// package.
package auth
