// Package setting says what is wrong with the values of settings, for the
// packages whose Config they are in.
package setting

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Error is a value that cannot work.
type Error struct {
	// Path leads to it: backoff.max, routes[0].sink.
	Path string
	// Value, if not nil, begins the message. It is apart from the rest for those
	// who have to hide it.
	Value any
	// Problem says what is wrong, and the remedy.
	Problem string
}

// Error implements error: "backoff.max: 0s is out of range; …".
func (e *Error) Error() string {
	switch value := e.Value.(type) {
	case nil:
		return e.Path + ": " + e.Problem
	case string:
		return e.Path + ": " + strconv.Quote(value) + e.Problem
	default:
		return e.Path + ": " + Format(value) + e.Problem
	}
}

// Errorf returns an Error without a value.
func Errorf(path, format string, arguments ...any) error {
	return &Error{Path: path, Problem: fmt.Sprintf(format, arguments...)}
}

// OneOf returns an Error unless the value is one of those that are known.
func OneOf[T ~string](path string, value T, known ...T) error {
	if slices.Contains(known, value) {
		return nil
	}
	words := make([]string, len(known))
	for i, word := range known {
		words[i] = string(word)
	}
	return &Error{path, string(value), " is not allowed; it must be " + enumerate(words)}
}

// enumerate lists words.
func enumerate(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// Between returns an Error unless the value is in the range, bounds included.
func Between[T int | float64 | time.Duration](path string, value, least, most T) error {
	if least <= value && value <= most {
		return nil
	}
	return &Error{path, value, fmt.Sprintf(" is out of range; it must be between %s and %s", Format(least), Format(most))}
}

// Identifier returns an Error unless PostgreSQL takes the name for that of a
// schema or table, and it has no more bytes than the longest.
func Identifier(path, name string, longest int) error {
	switch {
	case name == "":
		return Errorf(path, "is empty; leave the key out for the default")
	case strings.ContainsRune(name, 0) || !utf8.ValidString(name):
		return Errorf(path, "must be UTF-8 without NUL")
	case len(name) > longest:
		return &Error{path, name, fmt.Sprintf(" has %d bytes; at most %d fit", len(name), longest)}
	}
	return nil
}

// Format writes a value as people do, durations 24h instead of 24h0m0s.
func Format(value any) string {
	text := fmt.Sprint(value)
	if _, ok := value.(time.Duration); !ok {
		return text
	}
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
