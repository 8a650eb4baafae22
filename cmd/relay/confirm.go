package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// confirmation is the flag --yes, and the question that it answers.
type confirmation struct{ yes bool }

func (c *confirmation) add(command *cobra.Command) {
	command.Flags().BoolVar(&c.yes, "yes", false, "do not ask; needed where stdin is no terminal")
}

// possible returns an error where nobody can be asked and nothing was said.
func (c *confirmation) possible(command *cobra.Command) error {
	if c.yes || interactive(command.InOrStdin()) {
		return nil
	}
	return errors.New("stdin is no terminal, so nobody can be asked; nothing was changed: use --yes")
}

// ask asks unless --yes was said, and returns an error unless the answer is yes.
func (c *confirmation) ask(ctx context.Context, command *cobra.Command, question string) error {
	if c.yes {
		return nil
	}
	_, _ = fmt.Fprintf(command.ErrOrStderr(), "%s [y/N] ", question)
	answers := make(chan string, 1)
	// A read from a terminal cannot be ended; when a signal comes, the process
	// ends with it.
	go func() {
		answer, _ := bufio.NewReader(command.InOrStdin()).ReadString('\n') // no answer is no
		answers <- strings.ToLower(strings.TrimSpace(answer))
	}()
	select {
	case <-ctx.Done():
		_, _ = fmt.Fprintln(command.ErrOrStderr())
		return failed(errors.New("interrupted; nothing was changed"))
	case answer := <-answers:
		if answer != "y" && answer != "yes" {
			return failed(errors.New("nothing was changed"))
		}
		return nil
	}
}

// interactive reports whether somebody may answer. /dev/null is a character
// device too, and what stdin is where nobody is.
func interactive(stdin io.Reader) bool {
	file, ok := stdin.(*os.File)
	if !ok || !isTerminal(file) {
		return false
	}
	info, err := file.Stat()
	null, nullErr := os.Stat(os.DevNull)
	return err == nil && (nullErr != nil || !os.SameFile(info, null))
}
