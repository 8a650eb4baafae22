package source

import (
	"time"

	"github.com/outboxrelay/relay/internal/pgarray"
)

// idArray returns the array literal of ids.
func idArray(ids []int64) []byte {
	a := make(pgarray.Array, 0, 2+len(ids)*8)
	for _, id := range ids {
		a.Integer(id)
	}
	return a.End()
}

// textArray returns the array literal of texts.
func textArray(texts []string) []byte {
	var a pgarray.Array
	for _, text := range texts {
		a.Text(text)
	}
	return a.End()
}

// intArray returns the array literal of integers.
func intArray(values []int) []byte {
	var a pgarray.Array
	for _, v := range values {
		a.Integer(int64(v))
	}
	return a.End()
}

// secondsArray returns the array literal of durations in seconds.
func secondsArray(durations []time.Duration) []byte {
	var a pgarray.Array
	for _, d := range durations {
		a.Seconds(d)
	}
	return a.End()
}

// uuidArray returns the array literal of UUIDs.
func uuidArray(ids [][16]byte) []byte {
	var a pgarray.Array
	for _, id := range ids {
		a.UUID(id)
	}
	return a.End()
}
