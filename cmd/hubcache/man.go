package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newManCommand is "hubcache docs man", which writes the man pages for packages. It is
// hidden.
func newManCommand(root *cobra.Command) *cobra.Command {
	docs := &cobra.Command{Use: "docs", Hidden: true, Short: "Documentation for packages"}
	docs.AddCommand(&cobra.Command{
		Use: "man DIR", Short: "Write the man pages into a folder", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Title: "HUBCACHE", Section: "1", Source: "hubcache " + versionString()}, args[0])
		},
	})
	return docs
}
