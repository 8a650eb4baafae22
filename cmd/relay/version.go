package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// build says what this binary was made of.
type build struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
}

func newVersion() *cobra.Command {
	var format output
	command := &cobra.Command{
		Use:     "version",
		Short:   "Show the version, the commit and Go's version",
		Example: "  relay version --output json",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			b := readBuild()
			if format == outputJSON {
				return writeJSON(command.OutOrStdout(), b)
			}
			_, err := fmt.Fprintf(command.OutOrStdout(), "relay %s (commit %s, %s)\n", b.Version, b.Commit, b.Go)
			return failed(err)
		},
	}
	format.add(command)
	return command
}

// readBuild prefers what the linker was told, then what Go recorded, as it does
// for `go install`.
func readBuild() build {
	b := build{Version: version, Commit: commit, Go: runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		if b.Version == "dev" && info.Main.Version != "" && info.Main.Version != "(devel)" {
			b.Version = info.Main.Version
		}
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" && b.Commit == "" {
				b.Commit = setting.Value
			}
		}
	}
	if b.Commit == "" {
		b.Commit = "unknown"
	}
	return b
}
