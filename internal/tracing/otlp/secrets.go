package otlp

import (
	"cmp"
	"slices"
	"strings"
)

// maxError bounds the errors that are logged: a collector's answer may be a
// page of HTML.
const maxError = 500

// leastSecret is the length from which a part of a header's value is hidden by
// itself: the token of "Bearer token".
const leastSecret = 6

// secrets are the values of headers, which a collector may answer with.
type secrets []string

// newSecrets returns the values and their words.
func newSecrets(values []string) (s secrets) {
	for _, value := range values {
		s = append(s, value)
		for word := range strings.FieldsSeq(value) {
			if len(word) >= leastSecret {
				s = append(s, word)
			}
		}
	}
	s = slices.DeleteFunc(s, func(value string) bool { return value == "" })
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
