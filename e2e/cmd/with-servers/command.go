package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// notRun is the exit code when the command could not be started, as shells have it.
const notRun = 127

// runCommand runs the command with the variables added to the environment,
// passes it the signals, and returns its exit code.
func runCommand(args, variables []string, signals <-chan os.Signal) (int, error) {
	command := exec.Command(args[0], args[1:]...)
	command.Env = append(os.Environ(), variables...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	// At a terminal the command stays in the group that may read from it and
	// that the terminal itself sends SIGINT to. Elsewhere it gets a group of
	// its own, so that what it started can be ended with it.
	terminal := isTerminal(os.Stdin)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: !terminal, Pdeathsig: syscall.SIGKILL}
	// The kernel means the thread that starts the command, not the process:
	// it must last as long.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := command.Start(); err != nil {
		return notRun, fmt.Errorf("starting %s: %w", args[0], err)
	}
	pid := command.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	for {
		select {
		case sig := <-signals:
			number, ok := sig.(syscall.Signal)
			switch {
			case !ok, terminal && number == syscall.SIGINT:
			case terminal:
				_ = command.Process.Signal(number)
			default:
				_ = syscall.Kill(-pid, number)
			}
		case err := <-ended:
			if !terminal {
				_ = syscall.Kill(-pid, syscall.SIGKILL)
			}
			return exitCode(err)
		}
	}
}

// exitCode is the command's, or 128 and the signal's number as shells have it.
func exitCode(err error) (int, error) {
	if err == nil {
		return 0, nil
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return 1, err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), fmt.Errorf("the command ended by the signal %v", status.Signal())
	}
	return exit.ExitCode(), nil
}

func isTerminal(file *os.File) bool {
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	// A file that was handed over does not know its name.
	nothing, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, nothing)
}
