package pattern

import (
	"slices"
	"unicode/utf8"
)

// The surrogates are no characters of UTF-8.
const (
	surrogateLow  = 0xd800
	surrogateHigh = 0xdfff
)

// complement returns the characters that are in none of the ranges.
func complement(ranges []runeRange) []runeRange {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b runeRange) int { return int(a.low - b.low) })
	var out []runeRange
	next := rune(0)
	for _, r := range sorted {
		if r.low > next {
			out = append(out, runeRange{next, r.low - 1})
		}
		next = max(next, r.high+1)
	}
	if next <= utf8.MaxRune {
		out = append(out, runeRange{next, utf8.MaxRune})
	}
	return out
}

// eachUTF8 splits a range of characters into such whose encodings are all
// sequences of bytes between low and high, byte by byte.
func eachUTF8(r runeRange, visit func(low, high []byte)) {
	if r.low > r.high {
		return
	}
	split := func(last rune) {
		eachUTF8(runeRange{r.low, last}, visit)
		eachUTF8(runeRange{last + 1, r.high}, visit)
	}
	if r.low <= surrogateHigh && r.high >= surrogateLow {
		eachUTF8(runeRange{r.low, surrogateLow - 1}, visit)
		eachUTF8(runeRange{surrogateHigh + 1, r.high}, visit)
		return
	}
	for _, longest := range []rune{0x7f, 0x7ff, 0xffff} { // of one, two and three bytes
		if r.low <= longest && r.high > longest {
			split(longest)
			return
		}
	}
	for bits := 6; r.high > 0x7f && bits <= 18; bits += 6 {
		tail := rune(1)<<bits - 1
		if r.low&^tail == r.high&^tail {
			break // the same bytes before these
		}
		if r.low&tail != 0 {
			split(r.low | tail)
			return
		}
		if r.high&tail != tail {
			split(r.high&^tail - 1)
			return
		}
	}
	visit(utf8.AppendRune(nil, r.low), utf8.AppendRune(nil, r.high))
}
