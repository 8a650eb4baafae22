package source

import (
	"encoding/hex"
	"strconv"
	"time"
)

// idArray returns the array literal of ids.
func idArray(ids []int64) []byte {
	b := make([]byte, 0, 2+len(ids)*8)
	b = append(b, '{')
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, id, 10)
	}
	return append(b, '}')
}

// textArray returns the array literal of texts, each quoted.
func textArray(texts []string) []byte {
	b := []byte{'{'}
	for i, text := range texts {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		for j := range len(text) {
			if text[j] == '"' || text[j] == '\\' {
				b = append(b, '\\')
			}
			b = append(b, text[j])
		}
		b = append(b, '"')
	}
	return append(b, '}')
}

// intArray returns the array literal of integers.
func intArray(values []int) []byte {
	wide := make([]int64, len(values))
	for i, v := range values {
		wide[i] = int64(v)
	}
	return idArray(wide)
}

// secondsArray returns the array literal of durations in seconds.
func secondsArray(durations []time.Duration) []byte {
	b := []byte{'{'}
	for i, d := range durations {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendFloat(b, d.Seconds(), 'f', 6, 64)
	}
	return append(b, '}')
}

// uuidArray returns the array literal of UUIDs.
func uuidArray(ids [][16]byte) []byte {
	b := make([]byte, 0, 2+33*len(ids))
	b = append(b, '{')
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = hex.AppendEncode(b, id[:])
	}
	return append(b, '}')
}
