package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// newTerminal returns both ends of a pseudoterminal.
func newTerminal(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	control := func(request uintptr, value *int32) {
		t.Helper()
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), request, uintptr(unsafe.Pointer(value))); errno != 0 { // a system call
			t.Fatal(errno)
		}
	}
	var unlocked, number int32
	control(syscall.TIOCSPTLCK, &unlocked)
	control(syscall.TIOCGPTN, &number)
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = terminal.Close() })
	return master, terminal
}

// screen collects what is written to it.
type screen struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.text.String()
}

// converse runs the relay with a terminal as stdin, waits for its question, and
// answers.
func converse(t *testing.T, answer func(master io.Writer, p *os.Process), arguments ...string) (result, string) {
	t.Helper()
	master, terminal := newTerminal(t)
	command := exec.CommandContext(t.Context(), binary, arguments...)
	command.Dir = t.TempDir()
	command.Env = []string{"HOME=" + command.Dir}
	var stdout bytes.Buffer
	stderr := &screen{}
	command.Stdin, command.Stdout, command.Stderr = terminal, &stdout, stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = command.Wait()
		close(ended)
	}()
	deadline := time.After(30 * time.Second)
	for !strings.Contains(stderr.String(), "[y/N] ") {
		select {
		case <-ended:
			t.Fatalf("it did not ask: %s%s", stdout.String(), stderr)
		case <-deadline:
			_ = command.Process.Kill()
			t.Fatalf("it did not ask in time: %s%s", stdout.String(), stderr)
		case <-time.After(5 * time.Millisecond):
		}
	}
	question := stderr.String()
	answer(master, command.Process)
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		_ = command.Process.Kill()
		t.Fatal("it did not end after the answer")
	}
	return result{stdout.String(), strings.TrimPrefix(stderr.String(), question), command.ProcessState.ExitCode()}, question
}

func says(text string) func(io.Writer, *os.Process) {
	return func(master io.Writer, _ *os.Process) { _, _ = io.WriteString(master, text) }
}

func TestConfirmation(t *testing.T) {
	for _, test := range []struct {
		arguments []string
		question  string
	}{
		{words{"parked", "skip", "--all"}, "Move 2 parked messages to the dead letters and let what waits behind go on (orders 1, mail 1)? [y/N] "},
		{words{"parked", "retry", "--topic", "orders", "--key", "a"}, "Try 1 parked message again now (orders 1)? [y/N] "},
		{words{"dead", "retry", "--all"}, "Put 3 dead letters back into the outbox (orders 2, mail 1)? 1 comes after later messages of the same key. [y/N] "},
		{words{"dead", "discard", uid(13)}, "Delete 1 dead letter for good (mail 1)? [y/N] "},
		{words{"replay", "--all"}, "Publish 3 messages again (mail 1, orders 2)? [y/N] "},
	} {
		t.Run(strings.Join(test.arguments, " "), func(t *testing.T) {
			db, file := failures(t)
			arguments := slices.Concat(test.arguments, words{"--config", file})
			for name, answer := range map[string]func(io.Writer, *os.Process){"no": says("n\n"), "nothing": says("\n"), "end of file": says("\x04"), "something else": says("yo\n")} {
				got, question := converse(t, answer, arguments...)
				got.expect(t, 1, nil, words{"nothing was changed"})
				if question != test.question {
					t.Errorf("%s: it asks %q, want %q", name, question, test.question)
				}
			}
			got, _ := converse(t, func(_ io.Writer, p *os.Process) { _ = p.Signal(os.Interrupt) }, arguments...)
			got.expect(t, 1, nil, words{"interrupted; nothing was changed"})
			if n := db.Int(t, `SELECT count(*) FROM outbox_audit`); n != 0 {
				t.Fatalf("%d things were done", n)
			}
			got, _ = converse(t, says("Yes\n"), arguments...)
			got.expect(t, 0, words{}, nil)
			if n := db.Int(t, `SELECT count(*) FROM outbox_audit`); n == 0 {
				t.Error("nothing was done")
			}
		})
	}
}

// /dev/null is a character device as a terminal is, and what many schedulers
// give.
func TestNobodyToAsk(t *testing.T) {
	db, file := failures(t)
	pipe, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	_, _ = writer.WriteString("y\n")
	_ = writer.Close()
	for name, stdin := range map[string]*os.File{"null": nil, "pipe": pipe} {
		command := exec.CommandContext(t.Context(), binary, "parked", "skip", "--all", "--config", file)
		if stdin != nil {
			command.Stdin = stdin
		}
		output, _ := command.CombinedOutput()
		if command.ProcessState.ExitCode() != 2 || !strings.Contains(string(output), "--yes") {
			t.Errorf("stdin %s: exit code %d, %s", name, command.ProcessState.ExitCode(), output)
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM outbox_audit`); n != 0 {
		t.Errorf("%d things were done", n)
	}
}
