package demo

import (
	"slices"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/outbox"
)

// world is six committed events of two keys, two undone ones, and the broker
// as it should be.
func world() (committed []Event, undone []Undone, records []Record) {
	for i := range 6 {
		e := Event{MessageID: outbox.UUID{byte(i + 1)}, Key: string(rune('a' + i%2)), Sequence: int64(10 * (i + 1))}
		committed = append(committed, e)
		records = append(records, Record{MessageID: e.MessageID, Key: e.Key, Where: "partition 0"})
	}
	undone = []Undone{{outbox.UUID{100}, "declined"}, {outbox.UUID{101}, "voucher"}}
	return committed, undone, records
}

func TestCompare(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		records func([]Record) []Record
		// missing, phantom and out of order
		want       [3]int
		duplicates int
		clean      [2]bool // without kills, and with kills that explain 3
		offender   string
	}{
		{"as it should be", func(r []Record) []Record { return r }, [3]int{}, 0, [2]bool{true, true}, ""},
		{"keys in another order", func(r []Record) []Record {
			r[0], r[1] = r[1], r[0]
			return r
		}, [3]int{}, 0, [2]bool{true, true}, ""},
		{"one is missing", func(r []Record) []Record { return slices.Delete(r, 2, 3) }, [3]int{1, 0, 0}, 0, [2]bool{}, "missing: 03000000"},
		{"the last is missing", func(r []Record) []Record { return r[:5] }, [3]int{1, 0, 0}, 0, [2]bool{}, "sequence 60"},
		{"all are missing", func([]Record) []Record { return nil }, [3]int{6, 0, 0}, 0, [2]bool{}, "missing: and 1 more"},
		{"one was rolled back", func(r []Record) []Record {
			return append(r, Record{MessageID: outbox.UUID{100}, Key: "a", Where: "partition 3"})
		}, [3]int{0, 1, 0}, 0, [2]bool{}, "rolled back: declined"},
		{"one is from nowhere", func(r []Record) []Record { return append(r, Record{MessageID: outbox.UUID{200}}) }, [3]int{0, 1, 0}, 0, [2]bool{}, "nobody recorded it"},
		{"two of a key changed places", func(r []Record) []Record {
			r[0], r[2] = r[2], r[0]
			return r
		}, [3]int{0, 0, 1}, 0, [2]bool{}, "out of order: 01000000"},
		{"the first of a key came last", func(r []Record) []Record { return append(r[1:], r[0]) }, [3]int{0, 0, 1}, 0, [2]bool{}, "came after sequence 50"},
		{"a batch came again", func(r []Record) []Record { return append(r, r[2:5]...) }, [3]int{}, 3, [2]bool{false, true}, ""},
		{"more came again than was in flight", func(r []Record) []Record { return append(r, r[1:5]...) }, [3]int{}, 4, [2]bool{}, ""},
		{"an early duplicate hides no disorder", func(r []Record) []Record {
			return []Record{r[0], r[1], r[4], r[0], r[2], r[3], r[5]}
		}, [3]int{0, 0, 1}, 1, [2]bool{}, "sequence 30"},
		{"missing and phantom do not cancel out", func(r []Record) []Record {
			r[3].MessageID = outbox.UUID{101}
			return r
		}, [3]int{1, 1, 0}, 0, [2]bool{}, "rolled back: voucher"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			committed, undone, records := world()
			records = test.records(records)
			tally := Compare(committed, undone, records)
			if got := [3]int{len(tally.Missing), len(tally.Phantom), len(tally.OutOfOrder)}; got != test.want {
				t.Errorf("missing, phantom, out of order are %v, want %v", got, test.want)
			}
			if tally.Duplicates != test.duplicates {
				t.Errorf("%d duplicates, want %d", tally.Duplicates, test.duplicates)
			}
			if tally.Committed != 6 || tally.RolledBack != 2 || tally.Records != len(records) {
				t.Errorf("counts of %+v", tally)
			}
			for i, explained := range []int{0, 3} {
				if want := test.clean[i]; tally.Clean(explained) != want {
					t.Errorf("clean with %d duplicates explained is %v", explained, !want)
				}
			}
			if !strings.Contains(tally.Offenders(), test.offender) || (test.offender == "") != (tally.Offenders() == "") {
				t.Errorf("offenders are %q, want %q", tally.Offenders(), test.offender)
			}
		})
	}
}

func TestCompareShipments(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name      string
		shipments map[string]int
		once      int
		// twice, never and unpaid
		want     [3]int
		offender string
	}{
		{"as it should be", map[string]int{"a": 1, "b": 1, "c": 1}, 3, [3]int{}, ""},
		{"one twice", map[string]int{"a": 1, "b": 2, "c": 1}, 2, [3]int{1, 0, 0}, "shipped twice: order b, 2 times"},
		{"one never", map[string]int{"a": 1, "c": 1}, 2, [3]int{0, 1, 0}, "never shipped: order b"},
		{"one that nobody paid", map[string]int{"a": 1, "b": 1, "c": 1, "d": 1}, 3, [3]int{0, 0, 1}, "shipped unpaid: order d"},
		{"twice and never do not cancel out", map[string]int{"a": 2, "c": 1}, 1, [3]int{1, 1, 0}, "never shipped: order b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tally := Tally{Shipping: CompareShipments([]string{"a", "b", "c"}, test.shipments)}
			s := tally.Shipping
			if got := [3]int{len(s.Twice), len(s.Never), len(s.Unpaid)}; got != test.want || s.Once != test.once || s.Paid != 3 {
				t.Errorf("twice, never, unpaid are %v, want %v; %d of %d once, want %d", got, test.want, s.Once, s.Paid, test.once)
			}
			if want := test.offender == ""; tally.Clean(0) != want {
				t.Errorf("clean is %v", !want)
			}
			if !strings.Contains(tally.Offenders(), test.offender) || (test.offender == "") != (tally.Offenders() == "") {
				t.Errorf("offenders are %q, want %q", tally.Offenders(), test.offender)
			}
		})
	}
}

func TestArrivals(t *testing.T) {
	t.Parallel()
	var a Arrivals
	_, _, records := world()
	for _, r := range append(records, records[0]) {
		a.Add(r)
	}
	if n, distinct := a.Count(); n != 7 || distinct != 6 {
		t.Errorf("%d records of %d messages", n, distinct)
	}
	if !slices.Equal(a.Records(), append(records, records[0])) {
		t.Error("the records are others")
	}
}
