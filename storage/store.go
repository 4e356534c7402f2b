// Package storage keeps content-addressed blobs in a directory, within a byte budget.
package storage

import "log/slog"

// Options is what Open needs. Dir must be set.
type Options struct {
	Dir     string // created, 0700, when missing
	Budget  int64  // bytes that blobs/ and ingest/ may hold together
	MinFree int64  // bytes of the file system that are left free, whatever the budget
	Log     *slog.Logger
}

// Store is the cache on disk. All methods are safe for concurrent use.
type Store struct{}

// Open opens or creates the store in o.Dir. A damaged index is set aside and rebuilt.
// Errors: the directory can't be created or written, or another process has it open.
func Open(o Options) (*Store, error) { return &Store{}, nil }

// SetLimits changes the budget and the free space to keep. When they shrink,
// what is too much leaves before SetLimits returns, as far as it isn't being read.
func (s *Store) SetLimits(budget, minFree int64) {}

// Stats returns a snapshot.
func (s *Store) Stats() Stats { return Stats{} }

// Close writes what is only in memory and closes the index.
func (s *Store) Close() error { return nil }
