package prune

import (
	"encoding/json"
	"time"
)

// Decision is how a run ended.
type Decision string

// How a run can end.
const (
	NotNeeded  Decision = "not-needed" // no file system is above the high watermark
	Deferred   Decision = "deferred"   // not now: a hold, activity, or locked records
	Pruned     Decision = "pruned"     // at the low watermark (in a dry run: would be)
	Incomplete Decision = "incomplete" // still above it: the rules keep everything else
	Failed     Decision = "failed"     // the Engine could not be asked, everything was kept
)

// Report is what a run decided and did. Its JSON form is stable.
type Report struct {
	Decision Decision
	// Reason says why, in words, when the decision is not [Pruned].
	Reason string
	DryRun bool
	// Watched is whether a watcher records uses; without one the records are what runs saw.
	Watched bool
	// Critical is whether a file system was above the critical watermark.
	Critical bool
	// High and Low are the policy's watermarks, as shares.
	High, Low float64
	// Before and After are the file systems before the run and after it.
	Before, After []Disk
	// Verdicts are the images in the order of [Decide], those deleted first.
	Verdicts []Verdict
}

// Freed is how many bytes the file systems have gained; 0 in a dry run. Others write and
// delete at the same time, so it is what happened to the disk, not a sum of image sizes.
func (r Report) Freed() int64 {
	var n int64
	for i := range min(len(r.Before), len(r.After)) {
		n += max(0, r.Before[i].Used-r.After[i].Used)
	}
	return n
}

// MarshalJSON writes schema 1.
func (r Report) MarshalJSON() ([]byte, error) {
	type image struct {
		ID         string    `json:"id"`
		References []string  `json:"references"`
		Size       int64     `json:"size_bytes"`
		Unique     int64     `json:"unique_bytes"`
		LastUse    time.Time `json:"last_use"`
		Action     Action    `json:"action"`
		Rule       Rule      `json:"rule"`
		Why        string    `json:"why"`
	}
	images := make([]image, 0, len(r.Verdicts))
	for _, v := range r.Verdicts {
		images = append(images, image{v.Image.ID, v.Image.References(), v.Image.Size, v.Image.Unique,
			v.LastUse.UTC(), v.Action, v.Rule, v.Why})
	}
	return json.Marshal(struct {
		Schema   int      `json:"schema"`
		Decision Decision `json:"decision"`
		Reason   string   `json:"reason"`
		DryRun   bool     `json:"dry_run"`
		Watched  bool     `json:"watched"`
		Critical bool     `json:"critical"`
		High     float64  `json:"high_watermark"`
		Low      float64  `json:"low_watermark"`
		Before   []Disk   `json:"disks_before"`
		After    []Disk   `json:"disks_after"`
		Freed    int64    `json:"freed_bytes"`
		Images   []image  `json:"images"`
	}{1, r.Decision, r.Reason, r.DryRun, r.Watched, r.Critical, r.High, r.Low,
		append([]Disk{}, r.Before...), append([]Disk{}, r.After...), r.Freed(), images})
}

// References are all names of the image, tags first; never nil.
func (img Image) References() []string {
	return append(append([]string{}, img.Tags...), img.Digests...)
}
