package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/server"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/name"
)

func newVerifyCommand(l *settings.Loader) *cobra.Command {
	var (
		find           *adminclient.Finder
		repair, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that all that is cached is as it came",
		Long: `Has the running server hash all that it has cached, and drop what is bad: the
disk or somebody has changed it. Without --repair, that is fetched again when a
client asks for it. It reads 64 MiB a second, and 8 while a client gets a layer,
so 100 GiB take half an hour or longer.

Ctrl-C ends it. What was found bad by then has been dropped.

Exit codes: 0 all is as it came, or repaired; 1 failed; 2 wrong usage; 3
something was bad and is not repaired; 75 not now: another verify goes on.`,
		Example: "  hubcache verify --repair",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := find.Find()
			if err != nil {
				return err
			}
			v := &verifyRun{out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), repair: repair, asJSON: asJSON}
			return v.run(cmd.Context(), c)
		},
	}
	find = bindAdmin(cmd, l)
	cmd.Flags().BoolVar(&repair, "repair", false, "fetch again what is bad")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}

// verifyRun is one run of the command.
type verifyRun struct {
	out, err       io.Writer
	repair, asJSON bool

	progress admin.VerifyProgress
	bad      []admin.BadBlob
	repairs  int  // that have been tried
	drawn    bool // the line of the progress is on the terminal
}

// run has the server do the work, and shows it.
func (v *verifyRun) run(ctx context.Context, c *adminclient.Client) error {
	err := c.Stream(ctx, http.MethodPost, "/api/v1/verify", admin.VerifyRequest{Repair: v.repair}, func(line []byte) error {
		var e admin.VerifyEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		v.event(e)
		return nil
	})
	v.erase()
	switch {
	case adminclient.Status(err) == http.StatusConflict:
		server.PrintError(v.err, fmt.Errorf("%w: try again when that has ended", err))
		return exitCode(exitTryAgain)
	case v.progress.AllBlobs == 0 && err != nil && ctx.Err() == nil:
		return err
	}
	if err := v.print(err == nil); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return errors.New("interrupted; what was found bad has been dropped")
	}
	if err != nil {
		return err
	}
	for _, b := range v.bad {
		if !b.Repaired {
			return exitCode(exitIncomplete)
		}
	}
	return nil
}

// event takes note of an event, and shows it.
func (v *verifyRun) event(e admin.VerifyEvent) {
	switch {
	case e.Progress != nil:
		v.progress = *e.Progress
	case e.Bad != nil:
		v.bad = append(v.bad, *e.Bad)
	case e.Repair != nil:
		v.repairs++
		for i := range v.bad {
			if v.bad[i].Digest == e.Repair.Digest {
				v.bad[i] = *e.Repair
			}
		}
	}
	v.draw()
}

// draw shows on a terminal how far it has come.
func (v *verifyRun) draw() {
	if !drawable(v.err) {
		return
	}
	p := v.progress
	line := fmt.Sprintf("verifying: %s of %s (%d %%)", human(p.Bytes), human(p.AllBytes), p.Bytes*100/max(p.AllBytes, 1))
	if len(v.bad) > 0 {
		line += fmt.Sprintf(", %d bad", len(v.bad))
	}
	if v.repair && v.repairs > 0 {
		line = fmt.Sprintf("repairing: %d of %d", v.repairs, len(v.bad))
	}
	fmt.Fprintf(v.err, "\r\x1b[K%s", line)
	v.drawn = true
}

// erase takes the line of the progress away.
func (v *verifyRun) erase() {
	if v.drawn {
		fmt.Fprint(v.err, "\r\x1b[K")
	}
}

// verifiedNow is the document of verify --json.
type verifiedNow struct {
	Schema   int  `json:"schema"`
	Complete bool `json:"complete"` // all that was cached has been hashed, and repaired if that was asked for
	admin.VerifyProgress
	Bad []admin.BadBlob `json:"bad"` // never null
}

// print prints the result.
func (v *verifyRun) print(complete bool) error {
	if v.asJSON {
		return printJSON(v.out, verifiedNow{admin.Schema, complete, v.progress, append([]admin.BadBlob{}, v.bad...)})
	}
	t := tabwriter.NewWriter(v.out, 0, 8, 2, ' ', 0)
	repaired := 0
	if len(v.bad) > 0 {
		fmt.Fprintln(t, "BAD BLOB\tSIZE\tNOW\tWHY")
	}
	for _, b := range v.bad {
		now, why := "dropped", b.Why
		switch {
		case b.Repaired:
			now = "fetched again"
			repaired++
		case !b.Dropped:
			now = "still there"
		}
		if len(b.Repositories) > 0 {
			why += " (" + name.Familiar(b.Repositories[0]) + ")"
		}
		if b.Error != nil {
			why += "; not fetched: " + *b.Error
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", b.Digest, human(b.Size), now, why)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	line := fmt.Sprintf("%s verified, %s: ", plural(int64(v.progress.Blobs), "blob"), human(v.progress.Bytes))
	if !complete {
		line = fmt.Sprintf("%d of %s verified, %s of %s: ", v.progress.Blobs, plural(int64(v.progress.AllBlobs), "blob"), human(v.progress.Bytes), human(v.progress.AllBytes))
	}
	switch {
	case len(v.bad) == 0 && !complete:
		line += "none was bad"
	case len(v.bad) == 0:
		line += "all are as they came"
	case v.repair:
		line += fmt.Sprintf("%d bad, %d of them fetched again", len(v.bad), repaired)
	default:
		line += fmt.Sprintf("%d bad; what was dropped is fetched again when a client asks for it", len(v.bad))
	}
	_, err := fmt.Fprintln(v.out, line)
	return err
}
