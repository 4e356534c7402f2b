package prune

import (
	"encoding/json"
	"slices"
	"time"
)

// Decision says how a run ended.
type Decision string

// The ways in which a run can end.
const (
	NotNeeded  Decision = "not-needed" // no file system is above the high watermark
	Deferred   Decision = "deferred"   // try again later: a hold, activity, or locked records
	Pruned     Decision = "pruned"     // the low watermark is reached (in a dry run: would be)
	Incomplete Decision = "incomplete" // still above the low watermark; the rules keep the rest
	Failed     Decision = "failed"     // a question was not answered; nothing was deleted after that
)

// Report is what a run decided and did. Its JSON form is stable.
type Report struct {
	Decision Decision
	// Reason explains the decision to people; empty if it is [Pruned].
	Reason string
	DryRun bool
	// Watched says whether a watcher records uses. If not, the records have only what runs
	// of prune have seen.
	Watched bool
	// Critical says whether a file system was above the critical watermark.
	Critical bool
	// High and Low are the policy's watermarks, as shares.
	High, Low float64
	// Before and After are the file systems before the run and after it.
	Before, After []Disk
	// Warnings are for people: what in the settings has no effect, and what prune had to repair.
	Warnings []string
	// Help is what would free more space where the decision is [Incomplete].
	Help []Help
	// Images has a decision for each image, in the order of [Decide], deleted images first.
	Images []ImageDecision
}

// The reasons why a run is [Incomplete] if the rules keep the other images: after it, and before.
const (
	allDeleted = "every image that may be deleted was deleted, and a file system is still above the low watermark"
	notEnough  = "the images that may be deleted are not enough to reach the low watermark"
)

// TooFew reports whether the low watermark isn't reached because the rules keep the other images,
// and not for a reason of its own.
func (r Report) TooFew() bool { return r.Reason == allDeleted || r.Reason == notEnough }

// Freed returns how many bytes the file systems have gained; 0 in a dry run. It is a
// difference of two measurements and not a sum of image sizes: other programs write and
// delete at the same time.
func (r Report) Freed() int64 {
	var n int64
	for i := range min(len(r.Before), len(r.After)) {
		n += max(0, r.Before[i].Used-r.After[i].Used)
	}
	return n
}

// MarshalJSON writes schema 1 of the report. Names in it never change.
func (r Report) MarshalJSON() ([]byte, error) {
	type image struct {
		ID         string    `json:"id"`
		References []string  `json:"references"`
		Size       int64     `json:"size_bytes"`
		Unique     int64     `json:"unique_bytes"`
		LastUse    time.Time `json:"last_use"`
		Used       time.Time `json:"used,omitzero"`
		FirstSeen  time.Time `json:"first_seen,omitzero"`
		Action     Action    `json:"action"`
		Rule       Rule      `json:"rule"`
		Why        string    `json:"why"`
		With       string    `json:"with,omitempty"`
		Frees      int64     `json:"frees_bytes"`
	}
	images := make([]image, 0, len(r.Images))
	for _, d := range r.Images {
		images = append(images, image{d.Image.ID, d.Image.References(), d.Image.Size, d.Image.Unique,
			d.LastUse.UTC(), d.Used.UTC(), d.FirstSeen.UTC(), d.Action, d.Rule, d.Why, d.With, d.Frees})
	}
	return json.Marshal(struct {
		Schema    int      `json:"schema"`
		Decision  Decision `json:"decision"`
		Reason    string   `json:"reason"`
		DryRun    bool     `json:"dry_run"`
		Watched   bool     `json:"watched"`
		Critical  bool     `json:"critical"`
		High      float64  `json:"high_watermark"`
		Low       float64  `json:"low_watermark"`
		Before    []Disk   `json:"disks_before"`
		After     []Disk   `json:"disks_after"`
		Freed     int64    `json:"freed_bytes"`
		Predicted int64    `json:"predicted_bytes"`
		Warnings  []string `json:"warnings"`
		Help      []Help   `json:"would_help"`
		Images    []image  `json:"images"`
	}{1, r.Decision, r.Reason, r.DryRun, r.Watched, r.Critical, r.High, r.Low,
		append([]Disk{}, r.Before...), append([]Disk{}, r.After...), r.Freed(), r.Predicted(),
		append([]string{}, r.Warnings...), append([]Help{}, r.Help...), images})
}

// warn adds warnings, each once.
func (r *Report) warn(all ...string) {
	for _, text := range all {
		if !slices.Contains(r.Warnings, text) {
			r.Warnings = append(r.Warnings, text)
		}
	}
}

// Intermediate reports whether the image has no name, and is there only because another one was
// built on it.
func (d ImageDecision) Intermediate() bool {
	return len(d.Image.References()) == 0 && (d.Rule == RuleChildren || d.With != "")
}

// References returns all names of the image, tags first; never nil.
func (img Image) References() []string {
	return append(append([]string{}, img.Tags...), img.Digests...)
}
