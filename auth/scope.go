package auth

import (
	"context"

	"github.com/hubcache/hubcache/name"
)

type scopeKey struct{}

// WithScope returns a copy of ctx for requests that pull from repository, such as
// "library/redis": a Transport authorizes them with a token for this repository and no
// other. Requests without a scope in their context, or with one that is not the name of a
// repository, get a token without a scope. That is enough for the registry's own address
// /v2/, and for no repository.
func WithScope(ctx context.Context, repository string) context.Context {
	return context.WithValue(ctx, scopeKey{}, repository)
}

// scope returns the scope of a token for requests with ctx, "repository:<name>:pull", or "".
// A name that is none could ask for more than one repository, and is left out.
func scope(ctx context.Context) string {
	repository, _ := ctx.Value(scopeKey{}).(string)
	if !name.ValidRepository(repository) {
		return ""
	}
	return pull(repository)
}

// pull returns the scope of a token that allows to pull from repository.
func pull(repository string) string { return "repository:" + repository + ":pull" }

type anonymousKey struct{}

// Anonymous returns a copy of ctx for requests that are authorized as though there were no
// credential.
func Anonymous(ctx context.Context) context.Context {
	return context.WithValue(ctx, anonymousKey{}, true)
}

// IsAnonymous reports whether ctx is one of Anonymous.
func IsAnonymous(ctx context.Context) bool {
	v, _ := ctx.Value(anonymousKey{}).(bool)
	return v
}
