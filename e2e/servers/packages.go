package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Where the operating system's packages put their programs.
const (
	// rabbitDir has the server's own scripts; those in /usr/sbin change the
	// user to rabbitmq first.
	rabbitDir     = "/usr/lib/rabbitmq/bin"
	pgbouncerPath = "/usr/sbin/pgbouncer"
)

// javaPackages are the packages with a Java that Kafka runs on, the preferred
// first; distributions have some of them.
var javaPackages = []string{"openjdk-17-jre-headless", "openjdk-21-jre-headless", "openjdk-25-jre-headless", "default-jre-headless"}

// lackingPackages are the packages that the system needs and lacks.
func lackingPackages(ctx context.Context) []string {
	var lacking []string
	for name, present := range map[string]bool{
		javaPackages[0]:   javaVersion(ctx) >= minJavaVersion,
		"maven":           inPath("mvn"),
		"pgbouncer":       exists(pgbouncerPath),
		"python3-venv":    hasPython(ctx),
		"rabbitmq-server": hasRabbitMQ(),
		"tar":             inPath("tar"),
		"xz-utils":        inPath("xz"),
	} {
		if !present {
			lacking = append(lacking, name)
		}
	}
	slices.Sort(lacking)
	return lacking
}

// ensurePackages installs what the system lacks, when this is root and there
// is apt; otherwise its error names the command that does.
func ensurePackages(ctx context.Context, out io.Writer) error {
	lacking := lackingPackages(ctx)
	if len(lacking) == 0 {
		return nil
	}
	if os.Geteuid() != 0 || !inPath("apt-get") {
		return missingPackages(lacking)
	}
	cache, err := openCache()
	if err != nil {
		return err
	}
	unlock, err := lockCache(ctx, filepath.Join(cache, "lock"), out)
	if err != nil {
		return err
	}
	defer unlock()
	if lacking = lackingPackages(ctx); len(lacking) == 0 {
		return nil
	}
	return installPackages(ctx, out, lacking)
}

func installPackages(ctx context.Context, out io.Writer, packages []string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	progress(out, "installing %s with apt-get", strings.Join(packages, ", "))
	began := time.Now()
	if err := apt(ctx, "update"); err != nil {
		return err
	}
	for i, name := range packages {
		if name == javaPackages[0] {
			packages[i] = availableJava(ctx)
		}
	}
	if err := apt(ctx, append([]string{"install", "-y", "--no-install-recommends"}, packages...)...); err != nil {
		return err
	}
	if lacking := lackingPackages(ctx); len(lacking) > 0 {
		return fmt.Errorf("apt-get installed %s, and still lacking is what these have: %s; this distribution's packages do not fit",
			strings.Join(packages, ", "), strings.Join(lacking, ", "))
	}
	progress(out, "installed them in %v", time.Since(began).Round(100*time.Millisecond))
	return nil
}

func apt(ctx context.Context, args ...string) error {
	command := exec.Command("apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=300"}, args...)...)
	// In single-user mode packages do not start their services, whose ports
	// and data are not wanted here.
	command.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
	_, err := runTool(ctx, command)
	return err
}

// unpackPackage fills dir with what a package of the distribution contains,
// without installing it. The error names what to do instead.
func unpackPackage(ctx context.Context, name, dir string) error {
	if !inPath("apt-get") || !inPath("dpkg-deb") {
		return fmt.Errorf("this system has no apt-get to download %s: put its programs into the path", name)
	}
	ctx, cancel := context.WithTimeout(ctx, downloadLimit)
	defer cancel()
	// Only root may refresh the lists of packages, without which a fresh
	// machine knows none. Old lists may still do.
	var stale error
	if os.Geteuid() == 0 {
		stale = apt(ctx, "update")
	}
	// Without its sandbox apt would want a folder that its own user can write.
	download := exec.Command("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name)
	download.Dir = dir
	if _, err := runTool(ctx, download); err != nil {
		return fmt.Errorf("downloading the package %s: %w\nOr put its programs into the path", name, errors.Join(stale, err))
	}
	archives, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if err != nil {
		return err
	}
	if len(archives) != 1 {
		return fmt.Errorf("downloading the package %s: expected one in %s, found %d", name, dir, len(archives))
	}
	if _, err := runTool(ctx, exec.Command("dpkg-deb", "-x", archives[0], dir)); err != nil {
		return err
	}
	return os.Remove(archives[0])
}

// availableJava is the first of javaPackages that the distribution has.
func availableJava(ctx context.Context) string {
	for _, name := range javaPackages {
		if _, err := runTool(ctx, exec.Command("apt-cache", "show", name)); err == nil {
			return name
		}
	}
	return javaPackages[len(javaPackages)-1]
}

// hasRabbitMQ: and the programs of Erlang that it runs and is asked by.
func hasRabbitMQ() bool {
	return exists(rabbitDir+"/rabbitmq-server") && inPath("epmd") && inPath("erl_call")
}

func missingPackages(packages []string) error {
	return fmt.Errorf("this system lacks what the tests' servers need; install it with\n"+
		"\tsudo apt-get update && sudo apt-get install -y --no-install-recommends %s\n"+
		"or with your system's package manager (Java must be %d or newer)", strings.Join(packages, " "), minJavaVersion)
}

func inPath(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

var javaVersionPattern = regexp.MustCompile(`version "(\d+)`)

// javaVersion is the major version of the java in the path, 0 without one.
func javaVersion(ctx context.Context) int {
	program, err := exec.LookPath("java")
	if err != nil {
		return 0
	}
	output, err := runTool(ctx, exec.Command(program, "-version"))
	if err != nil {
		return 0
	}
	match := javaVersionPattern.FindStringSubmatch(output)
	if match == nil {
		return 0
	}
	version, err := strconv.Atoi(match[1])
	if err != nil {
		return 0
	}
	return version
}
