package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/name"
)

// wholeReferences returns arguments with whole digests in place of the short ones that ls prints, as the
// running server has them. The server is asked only if there is a short one.
func wholeReferences(ctx context.Context, find *adminclient.Finder, args []string) ([]string, error) {
	args = slices.Clone(args)
	for n, arg := range args {
		if !hasShortDigest(arg) {
			continue
		}
		c, err := find.Find()
		if err != nil {
			return nil, err
		}
		if args[n], err = wholeReference(ctx, c, arg); err != nil {
			return nil, err
		}
	}
	return args, nil
}

// shortest is how many digits of a digest are enough to name it: fewer are rather a slip.
const shortest = 6

// hasShortDigest reports whether a reference ends with the beginning of a digest.
func hasShortDigest(reference string) bool {
	_, d, _ := strings.Cut(reference, "@")
	algorithm, hex, _ := strings.Cut(d, ":")
	whole := map[string]int{"sha256": 64, "sha512": 128}[algorithm]
	return len(hex) >= shortest && len(hex) < whole && strings.Trim(hex, "0123456789abcdef") == ""
}

// shown is how many images are named that a short digest may mean.
const shown = 2

// wholeReference finds the one cached image whose name begins like that.
func wholeReference(ctx context.Context, c *adminclient.Client, short string) (string, error) {
	query := url.Values{"prefix": {short}, "limit": {strconv.Itoa(shown)}}
	var doc admin.Images
	if err := c.Do(ctx, http.MethodGet, "/api/v1/images?"+query.Encode(), nil, &doc); err != nil {
		return "", err
	}
	switch doc.Total {
	case 0:
		return "", fmt.Errorf("%s: no image without a tag has a digest that begins like that; hubcache ls lists them", short)
	case 1:
		return doc.Images[0].Reference, nil
	}
	return "", fmt.Errorf("%s: the digests of %d images begin like that; write more of it, such as %s", short, doc.Total, name.Familiar(doc.Images[0].Reference))
}
