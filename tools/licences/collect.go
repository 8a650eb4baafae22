package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// systems are what binaries are released for; some modules are needed on one
// alone.
var systems = []string{"linux", "darwin"}

// accepted are the licences, by their SPDX identifiers, that the project's own
// goes together with.
var accepted = []string{"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib"}

// knownPart is how much of a file, in percent, has to be the text of known
// licences.
const knownPart = 75

// standardLibrary stands for Go's own code, which is in each binary too.
const standardLibrary = "Go's standard library"

var (
	licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|unlicense)([-.].*)?$`)
	noticeFile  = regexp.MustCompile(`(?i)^notice([-.].*)?$`)
)

// module is one that the relay is built from.
type module struct {
	Path string
	// Licences are SPDX identifiers.
	Licences []string
	// Texts are those of its licences and notices, by their paths in the module.
	Texts map[string]string
}

// listedPackage is what `go list` tells of a package.
type listedPackage struct {
	Dir      string
	Standard bool
	Module   *struct {
		Path, Dir string
		Main      bool
	}
}

// collect returns the modules that the packages of the main module are built
// from, on every system, sorted by path. A module without a licence, or with
// one that is not accepted, is an error; all of them are told at once.
func collect(ctx context.Context, root string) ([]module, error) {
	modules := map[string]*module{}
	var failures []error
	for _, system := range systems {
		packages, err := list(ctx, root, system)
		if err != nil {
			return nil, err
		}
		for _, p := range packages {
			if p.Module == nil || p.Module.Main {
				continue
			}
			m := modules[p.Module.Path]
			if m == nil {
				m = &module{Path: p.Module.Path, Texts: map[string]string{}}
				modules[m.Path] = m
			}
			if err := m.read(p.Module.Dir, p.Dir); err != nil {
				return nil, err
			}
		}
	}
	golang, err := goModule(ctx)
	if err != nil {
		return nil, err
	}
	modules[golang.Path] = golang
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		failures = append(failures, modules[path].judge())
	}
	found := slices.SortedFunc(maps.Values(modules), func(a, b *module) int { return cmp.Compare(a.Path, b.Path) })
	list := make([]module, 0, len(found))
	for _, m := range found {
		list = append(list, *m)
	}
	return list, errors.Join(failures...)
}

func list(ctx context.Context, root, system string) ([]listedPackage, error) {
	output, err := golangCommand(ctx, root, []string{"GOOS=" + system, "CGO_ENABLED=0"}, "list", "-deps", "-json=Dir,Standard,Module", "./...")
	if err != nil {
		return nil, err
	}
	var packages []listedPackage
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var p listedPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, err
		}
		packages = append(packages, p)
	}
}

// golangCommand runs the go command and returns what it writes.
func golangCommand(ctx context.Context, dir string, environment []string, arguments ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Dir = dir
	command.Env = append(append(os.Environ(), "GOWORK=off"), environment...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(arguments, " "), err, &stderr)
	}
	return output, nil
}

// goModule is Go itself.
func goModule(ctx context.Context) (*module, error) {
	root, err := golangCommand(ctx, ".", nil, "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	m := &module{Path: standardLibrary, Texts: map[string]string{}}
	dir := strings.TrimSpace(string(root))
	return m, m.read(dir, dir)
}

// read takes the texts that stand beside a package, and above it up to the
// module's root: parts that were copied from elsewhere have theirs nearby.
func (m *module) read(root, dir string) error {
	for {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			name := entry.Name()
			if !entry.Type().IsRegular() || filepath.Ext(name) == ".go" || !licenceFile.MatchString(name) && !noticeFile.MatchString(name) {
				continue
			}
			path := filepath.Join(dir, name)
			relative, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			if m.Texts[filepath.ToSlash(relative)] != "" {
				continue
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			m.Texts[filepath.ToSlash(relative)] = string(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")))
		}
		if dir == root || len(dir) <= len(root) {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

// judge finds out which licences the texts are.
func (m *module) judge() error {
	var failures []error
	licences := map[string]bool{}
	for _, path := range slices.Sorted(maps.Keys(m.Texts)) {
		if noticeFile.MatchString(filepath.Base(path)) {
			continue
		}
		cover := licensecheck.Scan([]byte(m.Texts[path]))
		if cover.Percent < knownPart {
			failures = append(failures, fmt.Errorf("%s: %s is no licence that is known: only %.0f %% of it is the text of one", m.Path, path, cover.Percent))
		}
		for _, match := range cover.Match {
			licences[match.ID] = true
			if !slices.Contains(accepted, match.ID) {
				failures = append(failures, fmt.Errorf("%s: %s is under %s, which is not among the accepted %s: do without the module", m.Path, path, match.ID, strings.Join(accepted, ", ")))
			}
		}
	}
	m.Licences = slices.Sorted(maps.Keys(licences))
	if len(m.Licences) == 0 && len(failures) == 0 {
		failures = append(failures, fmt.Errorf("%s: no licence found: do without the module", m.Path))
	}
	return errors.Join(failures...)
}
