package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// result is what a lane came to.
type result struct {
	// group is what the lane is compared within, first of all with the group's
	// first lane.
	group, lane string
	// rate is in rows per second.
	rate float64
	// cpu is the CPU seconds per 100,000 rows of what relays, of PostgreSQL and
	// of Kafka.
	cpu [3]float64
	// peak is the most memory of what relays, in MiB.
	peak float64
	// p50 and p99 are milliseconds, 0 where no latency was measured.
	p50, p99 float64
}

// columns are the table's, after the lane.
var columns = []struct {
	title, format string
	value         func(*result) *float64
}{
	{"rows/s", "%.0f", func(r *result) *float64 { return &r.rate }},
	{"CPU-s/100k rows", "%.2f", func(r *result) *float64 { return &r.cpu[0] }},
	{"PostgreSQL's", "%.2f", func(r *result) *float64 { return &r.cpu[1] }},
	{"Kafka's", "%.2f", func(r *result) *float64 { return &r.cpu[2] }},
	{"peak MiB", "%.0f", func(r *result) *float64 { return &r.peak }},
	{"p50 ms", "%.1f", func(r *result) *float64 { return &r.p50 }},
	{"p99 ms", "%.1f", func(r *result) *float64 { return &r.p99 }},
}

// medians makes one result of all that a lane has in a group, in the order of
// their first ones, those of a group together.
func medians(all []result) []result {
	var names, groups []string
	of := map[string][]result{}
	for _, r := range all {
		name := r.group + "\x00" + r.lane
		if of[name] == nil {
			names = append(names, name)
		}
		if !slices.Contains(groups, r.group) {
			groups = append(groups, r.group)
		}
		of[name] = append(of[name], r)
	}
	var results []result
	for _, group := range groups {
		for _, name := range names {
			if rs := of[name]; rs[0].group == group {
				results = append(results, median(rs))
			}
		}
	}
	return results
}

// median takes each figure's median by itself.
func median(rs []result) result {
	m := rs[0]
	for _, column := range columns {
		values := make([]float64, len(rs))
		for i := range rs {
			values[i] = *column.value(&rs[i])
		}
		slices.Sort(values)
		*column.value(&m) = (values[(len(values)-1)/2] + values[len(values)/2]) / 2
	}
	return m
}

// table shows results with their ratios to the first lane of their group.
func table(results []result) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\t")
	for _, column := range columns {
		fmt.Fprintf(w, "\t%s", column.title)
	}
	fmt.Fprintln(w)
	var first result
	for _, r := range results {
		if r.group != first.group {
			first = r
		}
		group, _, _ := strings.Cut(r.group, ": ")
		fmt.Fprintf(w, "%s\t%s", group, r.lane)
		for _, column := range columns {
			value, reference := *column.value(&r), *column.value(&first)
			switch {
			case value == 0:
				fmt.Fprint(w, "\t-")
			case r.lane == first.lane || reference == 0:
				fmt.Fprintf(w, "\t"+column.format, value)
			default:
				fmt.Fprintf(w, "\t"+column.format+" (×%.2f)", value, value/reference)
			}
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // a Builder takes all
	for _, r := range results {
		if strings.Contains(r.lane, fmt.Sprintf("batches of %d", largeBatch)) {
			fmt.Fprintf(&text, "%s: %.2f CPU-us a row\n", r.lane, r.cpu[0]*10)
		}
	}
	return text.String()
}
