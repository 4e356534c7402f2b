package auth

import "github.com/hashicorp/golang-lru/v2/simplelru"

const (
	// maxTokens bounds the cache: filled with Docker Hub's tokens, of 3 KiB each, it takes
	// some 16 MiB.
	maxTokens = 4096
	// maxProven of them are tokens with which something could be read. The rest is enough for
	// those that have just been fetched, and for what is asked about names that don't exist.
	maxProven = maxTokens * 3 / 4
)

// tokenCache keeps the tokens that were used last, by tokenRequest.key. Token services give
// tokens for names that don't exist, too, and clients can invent any number of those; so a
// token with which something could be read has a place that such tokens never take. Not safe
// for concurrent use.
type tokenCache struct {
	fresh, proven *simplelru.LRU[string, *token] // no key is in both
}

func newTokenCache() *tokenCache {
	c := &tokenCache{}
	c.fresh, _ = simplelru.NewLRU[string, *token](maxTokens-maxProven, nil) // fails only for a size below 1
	c.proven, _ = simplelru.NewLRU[string, *token](maxProven, nil)
	return c
}

// get returns the token, expired or not, or nil.
func (c *tokenCache) get(key string) *token {
	if k, ok := c.proven.Get(key); ok {
		return k
	}
	k, _ := c.fresh.Get(key)
	return k
}

// add puts a token into the place of the one before it.
func (c *tokenCache) add(key string, k *token) {
	if c.proven.Contains(key) {
		c.proven.Add(key, k)
		return
	}
	c.fresh.Add(key, k)
}

// prove says that something could be read with the key's token.
func (c *tokenCache) prove(key string) {
	if k, ok := c.fresh.Peek(key); ok {
		c.fresh.Remove(key)
		c.proven.Add(key, k)
	}
}

// drop removes k, unless another token has replaced it already.
func (c *tokenCache) drop(key string, k *token) {
	for _, l := range []*simplelru.LRU[string, *token]{c.fresh, c.proven} {
		if now, ok := l.Peek(key); ok && now == k {
			l.Remove(key)
		}
	}
}
