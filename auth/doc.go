// Package auth authorizes requests to one registry, with the token flow that Docker defined.
//
// A Transport is an http.RoundTripper for one upstream registry. It gets a token for each
// repository from the registry's token service, with the credential from a File where there
// is one, and adds it to requests to the registry's own host and to no others. Where the
// registry wants HTTP Basic authentication instead, it adds the credential.
//
// The protocol is the "Token Authentication Specification" of the distribution project; the
// syntax of challenges is that of RFC 9110 §11.6.1. The package asks only for the right to
// pull: Docker Hub refuses a read-only access token that asks for more.
//
// Errors, log lines and formatted values of this package never contain a secret or a token.
package auth
