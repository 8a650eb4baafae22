// Package uuid reads and writes the text of UUIDs, for the types that the public
// packages have of their own.
package uuid

import "encoding/hex"

// Form is what Parse reads, in either case.
const Form = "00000000-0000-0000-0000-000000000000"

// Append appends the canonical text, in lower case.
func Append(b []byte, id [16]byte) []byte {
	b = hex.AppendEncode(b, id[:4])
	b = append(b, '-')
	b = hex.AppendEncode(b, id[4:6])
	b = append(b, '-')
	b = hex.AppendEncode(b, id[6:8])
	b = append(b, '-')
	b = hex.AppendEncode(b, id[8:10])
	b = append(b, '-')
	return hex.AppendEncode(b, id[10:])
}

// String returns the canonical text.
func String(id [16]byte) string {
	var text [len(Form)]byte
	return string(Append(text[:0], id))
}

// Parse reads a text of the usual form, and no other.
func Parse(text []byte) (id [16]byte, ok bool) {
	if len(text) != len(Form) {
		return [16]byte{}, false
	}
	var digits [32]byte
	n := 0
	for i, c := range text {
		if (Form[i] == '-') != (c == '-') {
			return [16]byte{}, false
		}
		if c != '-' {
			digits[n] = c
			n++
		}
	}
	if _, err := hex.Decode(id[:], digits[:]); err != nil {
		return [16]byte{}, false
	}
	return id, true
}
