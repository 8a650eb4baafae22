// Package pgarray writes PostgreSQL's array literals, which are text to every
// driver and in every mode of pgx.
package pgarray

import (
	"encoding/hex"
	"strconv"
	"time"

	"github.com/outboxrelay/relay/internal/uuid"
)

// Array is a literal in the making; nil is one without elements so far.
type Array []byte

// TimeFormat is ISO 8601 in UTC, which no setting of a session changes.
const TimeFormat = "2006-01-02T15:04:05.000000Z"

// next begins an element.
func (a *Array) next() {
	if len(*a) == 0 {
		*a = append(*a, '{')
	} else {
		*a = append(*a, ',')
	}
}

// Null appends a null.
func (a *Array) Null() {
	a.next()
	*a = append(*a, "NULL"...)
}

// UUID appends an id.
func (a *Array) UUID(id [16]byte) {
	a.next()
	*a = uuid.Append(*a, id)
}

// Integer appends a number.
func (a *Array) Integer(n int64) {
	a.next()
	*a = strconv.AppendInt(*a, n, 10)
}

// Seconds appends a duration as a number of seconds, to the microsecond.
func (a *Array) Seconds(d time.Duration) {
	a.next()
	*a = strconv.AppendFloat(*a, d.Seconds(), 'f', 6, 64)
}

// Time appends a time, to the microsecond.
func (a *Array) Time(t time.Time) {
	a.next()
	*a = append(*a, '"')
	*a = t.UTC().AppendFormat(*a, TimeFormat)
	*a = append(*a, '"')
}

// Bytes appends a bytea.
func (a *Array) Bytes(b []byte) {
	a.next()
	*a = append(*a, `"\\x`...)
	*a = hex.AppendEncode(*a, b)
	*a = append(*a, '"')
}

// Text appends a text.
func (a *Array) Text(s string) {
	a.next()
	*a = append(*a, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			*a = append(*a, '\\')
		}
		*a = append(*a, s[i])
	}
	*a = append(*a, '"')
}

// End ends the array and returns its bytes.
func (a *Array) End() []byte {
	if len(*a) == 0 {
		return []byte("{}")
	}
	return append(*a, '}')
}

// Literal ends the array and returns it as text.
func (a *Array) Literal() string { return string(a.End()) }
