package otlp

import (
	"cmp"
	"slices"
	"strings"
)

// maxError bounds the errors that are logged: a collector's answer may be a
// page of HTML.
const maxError = 500

// leastSecret is the length from which a header's value, or a word of it as the
// token of "Bearer token", is hidden: a tenant's number is none, and would make
// holes into every other number.
const leastSecret = 5

// secrets are the values of headers, which a collector may answer with.
type secrets []string

// newSecrets returns the values and their words.
func newSecrets(values []string) (s secrets) {
	for _, value := range values {
		s = append(s, value)
		s = slices.AppendSeq(s, strings.FieldsSeq(value))
	}
	s = slices.DeleteFunc(s, func(value string) bool { return len(value) < leastSecret })
	slices.SortFunc(s, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	return s
}

// hide returns the error's words without the secrets, on one line and not
// endlessly long.
func (s secrets) hide(err error) string {
	words := err.Error()
	for _, secret := range s {
		words = strings.ReplaceAll(words, secret, "***")
	}
	words = strings.ToValidUTF8(strings.Join(strings.Fields(words), " "), "?")
	if len(words) > maxError {
		words = strings.ToValidUTF8(words[:maxError], "") + " …"
	}
	return words
}
