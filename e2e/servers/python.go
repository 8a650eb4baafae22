package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// pythonPackages are what the consumers in Python import.
var pythonPackages = []string{"psycopg[binary]==3.3.9", "pika==1.4.4"}

// Python gets the packages that the tests' programs in Python need, and
// returns the interpreter that has them.
func Python(ctx context.Context, out io.Writer) (string, error) {
	// The folder's name has what is in it, so that another choice is made anew.
	name := strings.NewReplacer("==", "-", "[binary]", "").Replace(strings.Join(pythonPackages, "_"))
	home, err := ensure(ctx, out, filepath.Join("python", name), "Python's "+strings.Join(pythonPackages, " and "), func(dir string) error {
		return fillPython(ctx, dir)
	})
	return filepath.Join(home, "bin", "python"), err
}

// fillPython makes a virtual environment. It may be renamed afterwards, as its
// interpreter finds it by its own path; only the scripts beside that do not.
func fillPython(ctx context.Context, dir string) error {
	system, err := exec.LookPath("python3")
	if err != nil {
		return missingPackages([]string{"python3-venv"})
	}
	if _, err := runTool(ctx, exec.Command(system, "-m", "venv", dir)); err != nil {
		return err
	}
	// A setting of the user's, such as PIP_REQUIRE_VIRTUALENV, and a mirror's
	// address apply.
	install := exec.Command(filepath.Join(dir, "bin", "python"), append([]string{"-m", "pip", "install", "--disable-pip-version-check", "-q"}, pythonPackages...)...)
	install.Dir = os.TempDir()
	if _, err := runTool(ctx, install); err != nil {
		return errors.Join(fmt.Errorf("installing %s with pip", strings.Join(pythonPackages, " and ")), err)
	}
	return nil
}

// hasPython reports whether virtual environments can be made, which Debian has
// in a package of its own.
func hasPython(ctx context.Context) bool {
	program, err := exec.LookPath("python3")
	if err != nil {
		return false
	}
	_, err = runTool(ctx, exec.Command(program, "-c", "import venv, ensurepip"))
	return err == nil
}
