package inbox

import (
	"encoding/hex"
	"strconv"
	"time"
)

// array is a PostgreSQL array literal in the making: text to every driver and
// in every mode of pgx.
type array []byte

// next begins an element.
func (a *array) next() {
	if len(*a) == 0 {
		*a = append(*a, '{')
	} else {
		*a = append(*a, ',')
	}
}

func (a *array) null() {
	a.next()
	*a = append(*a, "NULL"...)
}

func (a *array) id(id ID) {
	a.next()
	*a, _ = id.AppendText(*a)
}

func (a *array) integer(n int64) {
	a.next()
	*a = strconv.AppendInt(*a, n, 10)
}

// time writes ISO 8601 in UTC, which no setting of the session changes.
func (a *array) time(t time.Time) {
	a.next()
	*a = append(*a, '"')
	*a = t.UTC().AppendFormat(*a, timeFormat)
	*a = append(*a, '"')
}

const timeFormat = "2006-01-02T15:04:05.000000Z"

func (a *array) bytes(b []byte) {
	a.next()
	*a = append(*a, `"\\x`...)
	*a = hex.AppendEncode(*a, b)
	*a = append(*a, '"')
}

func (a *array) text(s string) {
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

// literal ends the array.
func (a *array) literal() string {
	if len(*a) == 0 {
		return "{}"
	}
	return string(*a) + "}"
}
