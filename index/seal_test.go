package index

import (
	"bytes"
	"testing"
)

// FuzzSeal: unseal returns what seal was given, and finds any bit that has changed.
func FuzzSeal(f *testing.F) {
	f.Add([]byte("key"), []byte("value"), uint16(3))
	f.Fuzz(func(t *testing.T, key, value []byte, at uint16) {
		sealed := seal(key, bytes.Clone(value))
		if got, err := unseal(key, sealed); err != nil || !bytes.Equal(got, value) {
			t.Errorf("%x: %x, %v", value, got, err)
		}
		sealed[int(at)%len(sealed)] ^= 1 << (at % 8)
		if _, err := unseal(key, sealed); err == nil {
			t.Errorf("%x: a bit of %x was changed", value, sealed)
		}
	})
}
