package dashboard

import (
	"cmp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/inventory"
)

// tile is a repository in the treemap. X, Y, W and H are percentages of the whole.
type tile struct {
	Repository string // "" for all others together
	Images     int
	Bytes      int64 // what it takes of the disk, about: see tilesOf
	X, Y, W, H float64
}

// tilesMost is how many tiles there are. Smaller ones could not be told apart.
const tilesMost = 32

// mapWidth and mapHeight are the form of the treemap, so that tiles come close to squares.
const mapWidth, mapHeight = 3.2, 1.0

// tilesOf says how the images share stored bytes of the disk, by repository, the largest first. What
// several images share is split between them: of each image the same part of it counts, so that the
// sum is what they take. Tags of one digest count once.
func tilesOf(all *inventory.List, stored int64) []tile {
	var own, shared int64
	eachDigest(all, func(i inventory.Image, again bool) {
		if !again {
			own += i.Size - i.Shared
			shared += i.Shared
		}
	})
	part := 0.0 // of what an image shares
	if shared > 0 {
		part = min(1, float64(max(0, stored-all.Other-own))/float64(shared))
	}
	var tiles []tile
	eachDigest(all, func(i inventory.Image, again bool) {
		if n := len(tiles); n == 0 || tiles[n-1].Repository != i.Repository {
			tiles = append(tiles, tile{Repository: i.Repository})
		}
		t := &tiles[len(tiles)-1]
		t.Images++
		if !again {
			t.Bytes += i.Size - i.Shared + int64(part*float64(i.Shared))
		}
	})
	tiles = slices.DeleteFunc(tiles, func(t tile) bool { return t.Bytes <= 0 })
	slices.SortFunc(tiles, func(a, b tile) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Repository, b.Repository))
	})
	if len(tiles) > tilesMost {
		rest := tile{}
		for _, t := range tiles[tilesMost-1:] {
			rest.Bytes += t.Bytes
			rest.Images += t.Images
		}
		tiles = append(tiles[:tilesMost-1:tilesMost-1], rest)
	}
	squarify(tiles, 0, 0, mapWidth, mapHeight)
	for n := range tiles {
		t := &tiles[n]
		t.X, t.W, t.Y, t.H = 100*t.X/mapWidth, 100*t.W/mapWidth, 100*t.Y/mapHeight, 100*t.H/mapHeight
	}
	return tiles
}

// eachDigest calls f for every image. again says that another tag of the repository names the same.
func eachDigest(all *inventory.List, f func(i inventory.Image, again bool)) {
	seen, repository := map[digest.Digest]bool{}, ""
	for n := range all.Len() {
		i := all.At(n)
		if i.Repository != repository {
			clear(seen)
			repository = i.Repository
		}
		f(i, seen[i.Digest])
		seen[i.Digest] = true
	}
}

// squarify lays the tiles out in a rectangle, by the algorithm of Bruls, Huizing and van Wijk: a row
// along the shorter side takes tiles as long as they become squarer.
func squarify(tiles []tile, x, y, w, h float64) {
	for len(tiles) > 0 {
		var total float64
		for _, t := range tiles {
			total += float64(t.Bytes)
		}
		side, scale := min(w, h), w*h/total
		n, sum := 0, 0.0
		for worst := 0.0; n < len(tiles); n++ {
			next := sum + float64(tiles[n].Bytes)*scale
			now := squareness(tiles[:n+1], next, scale, side)
			if n > 0 && now > worst {
				break
			}
			sum, worst = next, now
		}
		thick, along := sum/side, 0.0
		for i := range tiles[:n] {
			t, length := &tiles[i], float64(tiles[i].Bytes)*scale/thick
			if w >= h {
				t.X, t.Y, t.W, t.H = x, y+along, thick, length
			} else {
				t.X, t.Y, t.W, t.H = x+along, y, length, thick
			}
			along += length
		}
		if w >= h {
			x, w = x+thick, w-thick
		} else {
			y, h = y+thick, h-thick
		}
		tiles = tiles[n:]
	}
}

// squareness returns the ratio of the sides of the least square tile of a row; 1 is best. sum is the
// area of the row.
func squareness(row []tile, sum, scale, side float64) float64 {
	thick, worst := sum/side, 1.0
	for _, t := range row {
		length := float64(t.Bytes) * scale / thick
		worst = max(worst, length/thick, thick/length)
	}
	return worst
}

// Label reports whether the tile has room for its name.
func (t tile) Label() bool { return t.W >= 7 && t.H >= 13 }

// Shade is the number of one of the colours of tiles: the largest are the darkest.
func (t tile) Shade(n int) int { return min(n/4, 5) }

// Count says how many images the tile has.
func (t tile) Count() string { return plural(int64(t.Images), "image") }
