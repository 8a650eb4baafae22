package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Error is one mistake in the configuration file. It never holds the value of
// a secret or of an environment variable.
type Error struct {
	File string
	// Line counts from 1. For a key that is missing it is the line of the
	// nearest mapping that should hold it.
	Line int
	// Path is where in the tree the mistake is: sinks.main.kafka.brokers,
	// routes[0].sink. It is empty when the file as a whole is wrong.
	Path string
	// Message says what is wrong with the value, and the remedy.
	Message string
}

// Error implements error: "relay.yaml:12: sinks.main.kafka.brokers: …".
func (e *Error) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Message)
	}
	return fmt.Sprintf("%s:%d: %s: %s", e.File, e.Line, e.Path, e.Message)
}

// Errors is every mistake in one configuration file, by line. It is never
// empty when it is returned as an error.
type Errors []*Error

// Error implements error, one mistake to a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the mistakes for errors.As.
func (e Errors) Unwrap() []error {
	unwrapped := make([]error, len(e))
	for i, one := range e {
		unwrapped[i] = one
	}
	return unwrapped
}

func (e Errors) sort() {
	slices.SortStableFunc(e, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), strings.Compare(a.Path, b.Path))
	})
}
