package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// format shows a value in Grafana's unit.
func format(value float64, unit string) string {
	switch unit {
	case "s":
		return seconds(value)
	case "ops", "reqps":
		return short(value) + "/s"
	case "bytes", "decbytes":
		return short(value) + "B"
	case "percentunit":
		return short(value*100) + " %"
	}
	return short(value)
}

func seconds(value float64) string {
	switch size := math.Abs(value); {
	case size == 0:
		return "0 s"
	case size < 0.001:
		return short(value*1e6) + " µs"
	case size < 1:
		return short(value*1e3) + " ms"
	case size < 300:
		return short(value) + " s"
	case size < 3*3600:
		return short(value/60) + " min"
	}
	return short(value/3600) + " h"
}

// short has three digits at most and a letter for the thousands.
func short(value float64) string {
	suffix := ""
	for _, s := range []string{"k", "M", "G"} {
		if math.Abs(value) < 1000 {
			break
		}
		value /= 1000
		suffix = s
	}
	text := strconv.FormatFloat(value, 'f', max(0, 2-int(math.Floor(math.Log10(max(math.Abs(value), 1))))), 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text + suffix
}

// ticks are round values from 0 to at least top, some four of them.
func ticks(top float64, unit string) []float64 {
	if top <= 0 || math.IsInf(top, 0) || math.IsNaN(top) {
		top = 1
	}
	bases := []float64{1, 2, 5, 10}
	factor := 1.0
	if unit == "s" && top >= 300 {
		factor, bases = 60, []float64{1, 2, 5, 10, 15, 30, 60}
	}
	rough := top / factor / 4
	size := math.Pow(10, math.Floor(math.Log10(rough)))
	if factor == 60 && rough >= 1 {
		size = 1
	}
	width := bases[len(bases)-1]
	for _, b := range bases {
		if b*size >= rough {
			width = b
			break
		}
	}
	width *= size * factor
	var all []float64
	for i := 0; ; i++ {
		all = append(all, float64(i)*width)
		if all[i] >= top {
			return all
		}
	}
}

// coordinate is a number for SVG.
func coordinate(v float64) string { return fmt.Sprintf("%.1f", v) }
