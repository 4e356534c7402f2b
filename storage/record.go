package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/index"
	"github.com/hubcache/hubcache/lru"
)

// The buckets of the index. Their names are on disk.
var (
	bucketBlobs      = []byte("blobs")    // digest → record
	bucketUses       = []byte("uses")     // digest → time of last use
	bucketLinks      = []byte("links")    // repository \0 digest → Link
	bucketTags       = []byte("tags")     // repository \0 tag → Tag
	bucketVisibility = []byte("verdicts") // repository → Visibility
	bucketMeta       = []byte("meta")     // keyBuilt
	bucketPulls      = []byte("pulls")    // repository \0 tag or digest → number of pulls

	buckets = [][]byte{bucketBlobs, bucketUses, bucketLinks, bucketTags, bucketVisibility, bucketMeta, bucketPulls}

	// keyBuilt is set once the index has been made from the files. Without it the index is
	// empty, or its rebuilding was cut short, and it must not be believed.
	keyBuilt = []byte("built")
)

// pair is the key of what belongs to a repository. No name contains a \0.
func pair(repository, name string) []byte {
	b := make([]byte, 0, len(repository)+1+len(name))
	return append(append(append(b, repository...), 0), name...)
}

// unpair is the inverse of pair.
func unpair(key []byte) (repository, name string) {
	r, n, _ := bytes.Cut(key, []byte{0})
	return string(r), string(n)
}

type entry = lru.Entry[digest.Digest, info]

// info is what is known of a committed blob without a look at disk or index.
type info struct {
	ino   uint64
	mtime int64 // Unix nanoseconds
	used  int64 // Unix nanoseconds
	bits  bits
}

type bits uint8

const (
	isManifest bits = 1 << iota
	isPartial
	isPrivate  // came through a repository that isn't public
	unverified // found on disk without a record: it is hashed before it is served
	onDisk     // found by the walk of reconcile
)

func (i *info) has(b bits) bool { return i.bits&b != 0 }

// firstUse is how long after a blob came in its uses still count as the one that brought it
// in: a pull asks several times, and one deployment goes to several hosts.
const firstUse = 10 * time.Minute

// again reports whether a use at that time, in Unix nanoseconds, is another one than the
// first. The time of the file says when the blob came in, so that this survives a restart. A
// time far ahead of the clock was set while that was wrong: it says nothing.
func (i *info) again(use int64) bool {
	return use-i.mtime >= int64(firstUse) || i.mtime-time.Now().UnixNano() >= int64(firstUse)
}

// record describes a committed blob.
type record struct {
	fileID
	private    bool   // came through a repository that isn't public
	unverified bool   // found on disk without a record: hashed before it is served
	manifest   bool   // mediaType and children are set
	mediaType  string // as upstream sent it
	children   []image.Child
}

// setManifest makes it the record of a manifest.
func (r *record) setManifest(m *Manifest) {
	r.manifest, r.mediaType, r.children = true, m.MediaType, m.Children
}

// entry returns what the room keeps of r.
func (r *record) entry(d digest.Digest, used int64) *entry {
	e := &entry{Key: d, Size: r.size, Value: info{ino: r.ino, mtime: r.mtime, used: used}}
	if r.manifest {
		e.Value.bits |= isManifest
	}
	if r.private {
		e.Value.bits |= isPrivate
	}
	if r.unverified {
		e.Value.bits |= unverified
	}
	return e
}

// errUnknownFlag says that a newer hubcache has written a value of the index.
var errUnknownFlag = errors.New("unknown flag")

// Flags of a record. A new flag needs a new version of the index.
const (
	flagPrivate = 1 << iota
	flagManifest
	flagUnverified
)

func (r *record) flags() (f byte) {
	if r.private {
		f |= flagPrivate
	}
	if r.manifest {
		f |= flagManifest
	}
	if r.unverified {
		f |= flagUnverified
	}
	return f
}

// recordHead is the length of what every record begins with: flags, size, inode, mtime.
const recordHead = 1 + 3*8

func (r *record) encode() []byte {
	b := make([]byte, 0, recordHead+len(r.mediaType)+80*len(r.children)+8)
	b = append(b, r.flags())
	b = binary.LittleEndian.AppendUint64(b, uint64(r.size))
	b = binary.LittleEndian.AppendUint64(b, r.ino)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.mtime))
	if !r.manifest {
		return b
	}
	b = appendString(b, r.mediaType)
	b = binary.AppendUvarint(b, uint64(len(r.children)))
	for _, c := range r.children {
		b = append(b, byte(c.Role))
		b = binary.AppendUvarint(b, uint64(c.Size))
		b = appendString(b, string(c.Digest))
	}
	return b
}

// decodeHead decodes all but media type and children.
func decodeHead(b []byte) (r record, rest []byte, err error) {
	if len(b) < recordHead {
		return r, nil, index.ErrDamaged
	}
	if b[0]&^(flagPrivate|flagManifest|flagUnverified) != 0 {
		return r, nil, errUnknownFlag
	}
	r.private, r.manifest, r.unverified = b[0]&flagPrivate != 0, b[0]&flagManifest != 0, b[0]&flagUnverified != 0
	r.size = int64(binary.LittleEndian.Uint64(b[1:]))
	r.ino = binary.LittleEndian.Uint64(b[9:])
	r.mtime = int64(binary.LittleEndian.Uint64(b[17:]))
	if r.size < 0 {
		return r, nil, index.ErrDamaged
	}
	return r, b[recordHead:], nil
}

func decodeRecord(b []byte) (record, error) {
	r, b, err := decodeHead(b)
	if err != nil || !r.manifest {
		return r, err
	}
	d := decoder{b: b}
	r.mediaType = d.string()
	for range d.uint(image.MaxChildren) {
		c := image.Child{Role: image.Role(d.byte()), Size: int64(d.uint(1 << 62)), Digest: digest.Digest(d.string())}
		r.children = append(r.children, c)
	}
	return r, d.end()
}

// Link says that a repository has a blob.
type Link struct {
	// Confirmed: upstream itself served or answered for the blob under this repository.
	// Otherwise one of the repository's manifests named it.
	Confirmed bool
	Size      int64 // bytes, as named or seen; -1 when unknown
}

func (l Link) encode() []byte {
	b := []byte{0}
	if l.Confirmed {
		b[0] = 1
	}
	return binary.AppendVarint(b, l.Size)
}

// checkFlag checks the first byte of an encoded Link or Visibility, which is 0 or 1.
func checkFlag(b []byte) error {
	if len(b) == 0 {
		return index.ErrDamaged
	}
	if b[0] > 1 {
		return errUnknownFlag
	}
	return nil
}

func decodeLink(b []byte) (Link, error) {
	if err := checkFlag(b); err != nil {
		return Link{}, err
	}
	d := decoder{b: b}
	l := Link{Confirmed: d.byte() == 1, Size: d.int()}
	return l, d.end()
}

// Tag is what a tag last resolved to.
type Tag struct {
	Digest    digest.Digest
	MediaType string
	Size      int64     // of the manifest, in bytes
	Checked   time.Time // when upstream last said so
}

func (t Tag) encode() []byte {
	b := binary.AppendVarint(nil, t.Checked.UnixNano())
	b = binary.AppendVarint(b, t.Size)
	b = appendString(b, string(t.Digest))
	return appendString(b, t.MediaType)
}

func decodeTag(b []byte) (Tag, error) {
	d := decoder{b: b}
	t := Tag{Checked: time.Unix(0, d.int()), Size: d.int(), Digest: digest.Digest(d.string()), MediaType: d.string()}
	return t, d.end()
}

// Visibility says whether anybody may read a repository.
type Visibility struct {
	Public bool
	At     time.Time // when it was reached
}

func (v Visibility) encode() []byte {
	b := []byte{0}
	if v.Public {
		b[0] = 1
	}
	return binary.AppendVarint(b, v.At.UnixNano())
}

func decodeVisibility(b []byte) (Visibility, error) {
	if err := checkFlag(b); err != nil {
		return Visibility{}, err
	}
	d := decoder{b: b}
	v := Visibility{Public: d.byte() == 1, At: time.Unix(0, d.int())}
	return v, d.end()
}

// notAhead returns t, or now if t is to come: the clock was wrong when it was stored.
func notAhead(t time.Time) time.Time {
	if now := time.Now(); t.After(now) {
		return now
	}
	return t
}

func encodeTime(t time.Time) []byte { return binary.AppendVarint(nil, t.UnixNano()) }

func decodeTime(b []byte) (int64, error) {
	d := decoder{b: b}
	return d.int(), d.end()
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decoder reads what the encoders above wrote. After a fault everything is zero and
// end returns index.ErrDamaged.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uint(limit uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string { return string(d.bytes()) }

// bytes is string without a copy: it is a part of what is decoded.
func (d *decoder) bytes() []byte {
	n := d.uint(uint64(len(d.b)))
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	s := d.b[:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) end() error {
	if d.bad || len(d.b) > 0 {
		return index.ErrDamaged
	}
	return nil
}
