// Licences lists the licences of all modules that the relay's binaries are
// built from, refuses those that the project does not accept, and writes the
// bill of materials of a binary.
//
//	licences [--check]                     write THIRD_PARTY_LICENSES, or see whether it is up to date
//	licences --binary FILE --release VERSION --sbom FILE
//	                                       write what the binary was built from, in CycloneDX
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
)

// listName is the file with all licences, in the repository's root.
const listName = "THIRD_PARTY_LICENSES"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "licences:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("licences", flag.ContinueOnError)
	root := flags.String("root", ".", "the repository's root")
	check := flags.Bool("check", false, "write nothing; fail when "+listName+" is not up to date")
	binary := flags.String("binary", "", "a binary of Go's")
	release := flags.String("release", "", "the binary's version")
	sbom := flags.String("sbom", "", "where the binary's bill of materials goes")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if (*binary == "") != (*sbom == "") || (*binary == "") != (*release == "") || flags.NArg() > 0 {
		return errors.New("want --binary, --release and --sbom together, and no arguments")
	}
	modules, err := collect(ctx, *root)
	if err != nil {
		return err
	}
	if *binary != "" {
		return writeSBOM(*binary, *release, *sbom, modules)
	}
	if *check {
		return checkList(*root, modules)
	}
	return os.WriteFile(filepath.Join(*root, listName), renderList(modules), 0o644)
}

// checkList fails when the list is not what the modules make it.
func checkList(root string, modules []module) error {
	content, err := os.ReadFile(filepath.Join(root, listName))
	if err != nil {
		return err
	}
	if !bytes.Equal(content, renderList(modules)) {
		return errors.New(listName + " is not up to date; run `make licences`")
	}
	return nil
}
