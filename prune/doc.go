// Package prune decides which images of a Docker host can be deleted, and deletes them one
// reference at a time. It replaces "docker image prune -af" on hosts where a repeated pull
// costs time or quota.
//
// Deciding and deleting are separate. [TakeSnapshot] asks the Engine what there is. [Decide]
// turns the [Snapshot], the [Policy] and the last-use records into one [ImageDecision] for
// each image, and has no effects. [Pruner.Run] measures the disk, waits for holds, calls
// both, and deletes. If the Engine can't answer a question, every image is kept.
//
// Two helpers work with it. [Holds] keeps prune from deleting while a deploy or a test runs.
// [Watcher] records from the daemon's events when each image was last used, because the
// Engine itself doesn't know.
//
// The package works with Engine API 1.41 and later and with both image stores. It knows
// nothing of registries.
package prune
