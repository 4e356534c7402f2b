// Package prune decides which of a Docker host's images may go, and removes them one
// reference at a time. It replaces "docker image prune -af" on hosts where a pull that
// has to be repeated costs time or quota.
//
// Deciding and doing are apart. [Look] takes a [Snapshot] of the Engine, [Decide] turns
// snapshot, [Policy] and last-use records into one [Verdict] for every image and does
// nothing else; [Pruner.Run] measures the disk, waits for holds, asks for both, and
// deletes. Whatever the Engine can't answer keeps every image.
//
// Two helpers run beside it: [Holds] keeps prune away while a deploy or a test runs, and
// [Watcher] records from the daemon's events when each image was last used, because the
// Engine itself doesn't know.
//
// The package works with Engine API 1.41 and later and with both image stores, and knows
// nothing of registries.
package prune
