package config

import (
	"math"
	"strings"
)

// nearest returns the known word that the user probably meant, or "".
func nearest(word string, known []string) string {
	plain := strings.NewReplacer("_", "", "-", "")
	best, distance := "", 3
	for _, candidate := range known {
		if strings.EqualFold(plain.Replace(word), plain.Replace(candidate)) {
			return candidate
		}
		if n := editDistance(word, candidate); n < distance && n < len(candidate)/2 {
			best, distance = candidate, n
		}
	}
	return best
}

// editDistance counts the bytes to insert, delete, replace or swap with their
// neighbour that lead from a to b. Words of absurd length are just far away.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return math.MaxInt
	}
	var before, above []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, above, row = above, row, make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			replace := above[j]
			if a[i] != b[j] {
				replace++
			}
			row[j+1] = min(replace, above[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
