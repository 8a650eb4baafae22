package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
)

// nodePackage is what the writers in JavaScript import.
const nodePackage = "pg@8.23.1"

// HasNode reports whether there is a Node.js with npm, which nothing but the
// tests of writers in JavaScript needs.
func HasNode() bool { return inPath("node") && inPath("npm") }

// NodeModules gets the packages that the tests' programs in JavaScript need, and
// returns the folder to name in NODE_PATH.
func NodeModules(ctx context.Context, out io.Writer) (string, error) {
	home, err := ensure(ctx, out, filepath.Join("node", strings.ReplaceAll(nodePackage, "@", "-")), "Node's "+nodePackage, func(dir string) error {
		// A setting of the user's and a mirror's address apply.
		install := exec.Command("npm", "install", "--prefix", dir, "--no-audit", "--no-fund", "--silent", nodePackage)
		install.Dir = dir
		if _, err := runTool(ctx, install); err != nil {
			return errors.Join(fmt.Errorf("installing %s with npm", nodePackage), err)
		}
		return nil
	})
	return filepath.Join(home, "node_modules"), err
}
