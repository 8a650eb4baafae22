package packages_test

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// output runs the command, which has to succeed, and returns what it writes.
func output(t *testing.T, name string, arguments ...string) string {
	t.Helper()
	text, code := try(t, name, arguments...)
	if code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s", name, strings.Join(arguments, " "), code, text)
	}
	return text
}

// try runs the command and returns what it writes and its exit code.
func try(t *testing.T, name string, arguments ...string) (string, int) {
	t.Helper()
	command := exec.CommandContext(t.Context(), name, arguments...)
	var text bytes.Buffer
	command.Stdout, command.Stderr = &text, &text
	err := command.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("%s: %v", name, err)
	}
	return text.String(), command.ProcessState.ExitCode()
}

// needs skips the test where a program is not installed; `make snapshot`
// installs them all.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
}
