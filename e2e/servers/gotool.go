package servers

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// buildLimit bounds one build; the largest takes some six minutes of two
// processors that have nothing else to do.
const buildLimit = 45 * time.Minute

// GoTool builds the command of a Go package, of a pinned version of its module,
// unless the cache has it, and returns the program's path. The values of
// ldflags are set as the linker's -X does: "main.version=v1.2.3". Progress goes
// to standard error. Several processes may ask for it at once; one builds.
func GoTool(ctx context.Context, pkg, version string, ldflags ...string) (string, error) {
	return goTool{pkg: pkg, version: version, ldflags: ldflags}.ensure(ctx, os.Stderr)
}

// GoModule returns the folder with the files of a pinned version of a Go
// module, in Go's own cache. They cannot be written.
func GoModule(ctx context.Context, module, version string) (string, error) {
	downloaded, err := downloadModule(ctx, module, version)
	return downloaded.Dir, err
}

// goTool is a command to build.
type goTool struct {
	pkg, version string
	ldflags      []string
	// prepare, when not nil, adds to the go.mod in the folder that it is built
	// in, before that asks for the package's module.
	prepare func(ctx context.Context, dir string) error
	// note is what whoever waits for the build should know.
	note string
}

// name is the program's.
func (t goTool) name() string {
	name := path.Base(t.pkg)
	if strings.HasPrefix(name, "v") && strings.Trim(name[1:], "0123456789") == "" {
		name = path.Base(path.Dir(t.pkg))
	}
	return name
}

// folder is where the program is in the cache: all that decides what it is.
func (t goTool) folder() string {
	folder := t.name() + "-" + t.version
	if len(t.ldflags) > 0 {
		hash := fnv.New32a()
		_, _ = hash.Write([]byte(strings.Join(t.ldflags, "\n")))
		folder += fmt.Sprintf("-%08x", hash.Sum32())
	}
	return filepath.Join("go", folder)
}

func (t goTool) ensure(ctx context.Context, out io.Writer) (string, error) {
	folder, err := ensureArtifact(ctx, out, artifact{
		path: t.folder(),
		what: t.name() + " " + t.version,
		verb: "building",
		note: t.note,
		// Builds take long, and what else is wanted need not wait for them.
		lock: t.folder() + ".lock",
		fill: func(dir string) error { return t.build(ctx, dir) },
	})
	return filepath.Join(folder, t.name()), err
}

// build fills dir with the program. It is built in a module of its own, as a
// module with replacements cannot be installed by `go install package@version`.
func (t goTool) build(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	work, err := os.MkdirTemp("", scratchPrefix+"build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if _, err := goCommand(ctx, work, "mod", "init", "tools"); err != nil {
		return err
	}
	if t.prepare != nil {
		if err := t.prepare(ctx, work); err != nil {
			return err
		}
	}
	if _, err := goCommand(ctx, work, "get", t.pkg+"@"+t.version); err != nil {
		return err
	}
	flags := []string{"-s", "-w"}
	for _, value := range t.ldflags {
		flags = append(flags, "-X", value)
	}
	_, err = goCommand(ctx, work, "build", "-trimpath", "-ldflags", strings.Join(flags, " "), "-o", filepath.Join(dir, t.name()), t.pkg)
	return err
}

// goCommand runs the go command as if nobody had set anything but where to
// download from.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	program, err := exec.LookPath("go")
	if err != nil {
		return "", fmt.Errorf("a tool of the tests has to be built, which needs Go: %w", err)
	}
	command := exec.Command(program, args...)
	command.Dir = dir
	// GOFLAGS must not be empty: that is as if unset, and go would look for
	// it in its file of settings.
	command.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off", "CGO_ENABLED=0", "GOOS=", "GOARCH=", "PWD="+dir)
	return runTool(ctx, command)
}

// downloadedModule is what `go mod download -json` tells.
type downloadedModule struct{ Dir, GoMod, Error string }

func downloadModule(ctx context.Context, module, version string) (downloadedModule, error) {
	ctx, cancel := context.WithTimeout(ctx, downloadLimit)
	defer cancel()
	var downloaded downloadedModule
	// Outside of any module.
	output, err := goCommand(ctx, os.TempDir(), "mod", "download", "-json", module+"@"+version)
	if start := strings.Index(output, "{"); start >= 0 {
		if decodeErr := json.NewDecoder(strings.NewReader(output[start:])).Decode(&downloaded); decodeErr == nil && downloaded.Error != "" {
			return downloaded, fmt.Errorf("downloading the Go module %s %s: %s", module, version, downloaded.Error)
		}
	}
	if err == nil && downloaded.Dir == "" {
		err = fmt.Errorf("go did not say where it is: %s", output)
	}
	if err != nil {
		return downloaded, fmt.Errorf("downloading the Go module %s %s: %w", module, version, err)
	}
	return downloaded, nil
}
