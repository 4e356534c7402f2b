package inventory

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// List is all that a store has: the images, ordered by repository, tag and digest. It keeps them in
// about 160 bytes each, because there may be a hundred thousand. It is immutable.
type List struct {
	Other int64 // bytes that belong to no image: partial downloads, lists of referrers, blobs whose images have gone

	rows         []row
	repositories []string
	mediaTypes   []string
	digests      string // one after the other
}

// row is an image.
type row struct {
	tag                    string
	size, shared, pulls    int64
	lastUse, checked       int64 // Unix nanoseconds; zeroTime for the zero time
	repository             uint32
	digest                 uint32 // where it begins in digests
	digestLength           uint8
	mediaType              uint16
	complete, pinned, kept bool
}

// zeroTime stands for the zero time.Time, which Unix nanoseconds can't express.
const zeroTime = -1 << 63

// NewList makes a list of images. They are put in order.
func NewList(images []Image, other int64) *List {
	sorted := slices.SortedStableFunc(slices.Values(images), func(a, b Image) int {
		return cmp.Or(strings.Compare(a.Repository, b.Repository), strings.Compare(a.Tag, b.Tag), strings.Compare(string(a.Digest), string(b.Digest)))
	})
	b := newListBuilder(len(images))
	for _, i := range sorted {
		b.add(i)
	}
	return b.list(other)
}

// listBuilder makes a List of images that come in order.
type listBuilder struct {
	l          *List
	digests    strings.Builder
	mediaTypes map[string]uint16
}

func newListBuilder(images int) *listBuilder {
	b := &listBuilder{l: &List{rows: make([]row, 0, images)}, mediaTypes: map[string]uint16{}}
	b.digests.Grow(images * digestLength)
	return b
}

func (b *listBuilder) add(i Image) {
	l := b.l
	if n := len(l.repositories); n == 0 || l.repositories[n-1] != i.Repository {
		l.repositories = append(l.repositories, i.Repository)
	}
	mediaType, ok := b.mediaTypes[i.MediaType]
	if !ok && len(l.mediaTypes) < 1<<16 { // a registry that invents more gets one of the others shown
		mediaType = uint16(len(l.mediaTypes))
		b.mediaTypes[i.MediaType] = mediaType
		l.mediaTypes = append(l.mediaTypes, i.MediaType)
	}
	l.rows = append(l.rows, row{
		tag: i.Tag, size: i.Size, shared: i.Shared, pulls: i.Pulls, lastUse: nanoseconds(i.LastUse), checked: nanoseconds(i.Checked),
		repository: uint32(len(l.repositories) - 1), digest: uint32(b.digests.Len()), digestLength: uint8(len(i.Digest)), mediaType: mediaType,
		complete: i.Complete, pinned: i.Pinned, kept: i.Protected,
	})
	b.digests.WriteString(string(i.Digest))
}

func (b *listBuilder) list(other int64) *List {
	b.l.digests, b.l.Other = b.digests.String(), other
	return b.l
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return zeroTime
	}
	return t.UnixNano()
}

func timeOf(nanoseconds int64) time.Time {
	if nanoseconds == zeroTime {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}

// Len is the number of images.
func (l *List) Len() int { return len(l.rows) }

// At returns the image at a place, from 0 on. It allocates nothing.
func (l *List) At(n int) Image {
	r := &l.rows[n]
	return Image{
		Repository: l.repositories[r.repository], Tag: r.tag, Digest: digest.Digest(l.digests[r.digest:][:r.digestLength]), MediaType: l.mediaTypes[r.mediaType],
		Size: r.size, Shared: r.shared, Complete: r.complete, Pinned: r.pinned, Protected: r.kept, Pulls: r.pulls,
		LastUse: timeOf(r.lastUse), Checked: timeOf(r.checked),
	}
}

// Orders are the names of the orders that Sorted knows.
var Orders = []string{"name", "last-use", "size", "pulls"}

// Sorted returns the places of all images in an order: by name, or by last-use, size or pulls, with the
// newest, largest or most first; equal ones by name. ok is false for an order that isn't one of Orders.
func (l *List) Sorted(order string) (places []int32, ok bool) {
	var of func(*row) int64
	switch order {
	case "name":
	case "last-use":
		of = func(r *row) int64 { return r.lastUse }
	case "size":
		of = func(r *row) int64 { return r.size }
	case "pulls":
		of = func(r *row) int64 { return r.pulls }
	default:
		return nil, false
	}
	places = make([]int32, len(l.rows))
	for n := range places {
		places[n] = int32(n)
	}
	if of != nil {
		slices.SortFunc(places, func(a, b int32) int {
			return cmp.Or(cmp.Compare(of(&l.rows[b]), of(&l.rows[a])), cmp.Compare(a, b))
		})
	}
	return places, true
}
