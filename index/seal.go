package index

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/hubcache/hubcache/boltfile"
)

// ErrDamaged says that the file, or a value in it, is not what was written. Every value ends
// in a checksum over key and value, so that damage is found when the value is read.
var ErrDamaged = boltfile.ErrDamaged

// Overhead is by how many bytes a stored value is longer than the value itself. A value that
// has this much spare capacity is not copied by Set.
const Overhead = 4

// seal appends the checksum to value.
func seal(key, value []byte) []byte {
	sum := crc32.Update(crc32.ChecksumIEEE(key), crc32.IEEETable, value)
	return binary.LittleEndian.AppendUint32(value, sum)
}

// unseal checks the checksum and returns the value without it.
func unseal(key, sealed []byte) ([]byte, error) {
	n := len(sealed) - Overhead
	if n < 0 {
		return nil, ErrDamaged
	}
	sum := crc32.Update(crc32.ChecksumIEEE(key), crc32.IEEETable, sealed[:n])
	if binary.LittleEndian.Uint32(sealed[n:]) != sum {
		return nil, ErrDamaged
	}
	return sealed[:n], nil
}

// unsealRow is unseal for a key that its value follows, as in the file. One checksum over
// both is faster than two.
func unsealRow(row []byte, key int) ([]byte, error) {
	n := len(row) - Overhead
	if n < key || binary.LittleEndian.Uint32(row[n:]) != crc32.ChecksumIEEE(row[:n]) {
		return nil, ErrDamaged
	}
	return row[key:n], nil
}
