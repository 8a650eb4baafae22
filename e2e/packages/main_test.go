// Package packages_test examines what a release consists of: archives,
// packages, bills of materials and the image, as goreleaser left them in the
// folder that RELAY_TEST_DIST names. `make snapshot` makes it and runs these
// tests; without it only what is in the repository is examined.
package packages_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// distVariable names the folder with a release.
const distVariable = "RELAY_TEST_DIST"

// root is the repository's.
const root = "../.."

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if folder := os.Getenv(distVariable); folder != "" {
		d, err := readDist(folder)
		if err == nil {
			// The scenarios play with the released binary.
			err = os.Setenv(scenario.BinaryVariable, d.path(d.the("Binary", "linux", "amd64")))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "packages:", err)
			return 1
		}
	}
	return scenario.Main(m)
}

// artifact is one of what goreleaser made.
type artifact struct {
	Name, Path, Type, Goos, Goarch string
	Extra                          struct{ Format string }
}

// dist is a release.
type dist struct {
	folder    string
	Version   string
	Commit    string
	artifacts []artifact
}

func readDist(folder string) (*dist, error) {
	folder, err := filepath.Abs(folder)
	if err != nil {
		return nil, err
	}
	d := &dist{folder: folder}
	for name, into := range map[string]any{"metadata.json": d, "artifacts.json": &d.artifacts} {
		content, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(content, into); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return d, nil
}

// openDist skips the test where there is no release.
func openDist(t *testing.T) *dist {
	t.Helper()
	folder := os.Getenv(distVariable)
	if folder == "" {
		t.Skipf("%s names no release: `make snapshot` makes one and runs this", distVariable)
	}
	d, err := readDist(folder)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// path is where the artifact is.
func (d *dist) path(a artifact) string { return filepath.Join(filepath.Dir(d.folder), a.Path) }

// all returns the artifacts of the type.
func (d *dist) all(kind string) (found []artifact) {
	for _, a := range d.artifacts {
		if a.Type == kind {
			found = append(found, a)
		}
	}
	return found
}

// the returns the artifact of the type for the platform; its path is no file's
// when there is none.
func (d *dist) the(kind, system, architecture string) artifact {
	found := d.all(kind)
	i := slices.IndexFunc(found, func(a artifact) bool { return a.Goos == system && a.Goarch == architecture })
	if i < 0 {
		return artifact{Path: "no " + kind + " for " + system + " " + architecture}
	}
	return found[i]
}

// linuxPackage returns the path of the package of the format.
func (d *dist) linuxPackage(t *testing.T, format, architecture string) string {
	t.Helper()
	for _, a := range d.all("Linux Package") {
		if a.Extra.Format == format && a.Goarch == architecture {
			return d.path(a)
		}
	}
	t.Fatalf("there is no %s for %s", format, architecture)
	return ""
}
