package storage

import "time"

// Stats is a snapshot of what the store holds. Sizes are in bytes.
type Stats struct {
	Bytes         int64 // file sizes in blobs/ and ingest/
	ReservedBytes int64 // room held for downloads whose files have not grown yet
	PinnedBytes   int64
	BudgetBytes   int64
	IndexBytes    int64 // index.db; not part of the budget

	Blobs     int64 // committed, manifests not among them
	Manifests int64
	Tags      int64

	Evictions    int64
	EvictedBytes int64
	Corrupt      int64     // blobs dropped because their bytes had changed on disk
	WriteErrors  int64     // disk errors; the clients were served all the same
	OldestUse    time.Time // last use of the next victim; zero when the store is empty
}
