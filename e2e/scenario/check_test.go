package scenario

import (
	"slices"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/outbox"
)

func id(n byte) outbox.UUID { return outbox.UUID{15: n} }

// rows are ids 1 to n, alternately of the keys a and b.
func rows(n int) (rows []Row) {
	for i := range n {
		rows = append(rows, Row{
			ID: int64(i + 1), MessageID: id(byte(i + 1)), Topic: "t", Key: string(rune('a' + i%2)), Keyed: true,
			Digest: Digest([]byte{byte(i)}),
		})
	}
	return rows
}

// recordsOf are the rows' as a faultless relay sends them.
func recordsOf(rows []Row) (records []Record) {
	for _, row := range rows {
		records = append(records, Record{
			MessageID: row.MessageID, Topic: row.Topic, Key: row.Key, Keyed: row.Keyed, Sequence: row.ID,
			Payload: []byte{byte(row.ID - 1)},
		})
	}
	return records
}

func TestCheckFindsEachViolation(t *testing.T) {
	committed := rows(6)
	all := recordsOf(committed)
	swapped := slices.Clone(all)
	swapped[1], swapped[3] = swapped[3], swapped[1] // 4 before 2, both of key b
	crossed := slices.Clone(all)
	crossed[0], crossed[1] = crossed[1], crossed[0] // 2 before 1, of different keys
	twice := append(slices.Clone(all), all[0], all[1])
	with := func(change func(*Record)) []Record {
		changed := slices.Clone(all)
		change(&changed[2])
		return changed
	}
	for name, test := range map[string]struct {
		check Check
		want  string // letters
	}{
		"nothing":                   {Check{Records: all}, ""},
		"a missing record":          {Check{Records: append(slices.Clone(all[:2]), all[3:]...)}, "L"},
		"a phantom":                 {Check{Records: append(slices.Clone(all), Record{MessageID: id(99)})}, "P"},
		"a rolled back one":         {Check{Records: append(slices.Clone(all), Record{MessageID: id(98)}), Undone: map[outbox.UUID]string{id(98): "rolled back"}}, "P"},
		"a key out of order":        {Check{Records: swapped}, "O"},
		"keys beside each other":    {Check{Records: crossed}, ""},
		"a total order broken":      {Check{Records: crossed, Order: OrderTotal}, "O"},
		"no order wanted":           {Check{Records: swapped, Order: OrderNone}, ""},
		"a key in two partitions":   {Check{Records: with(func(r *Record) { r.Partition = 3 })}, "O"},
		"a key that moved":          {Check{Records: moved(all, 3), Repartitioned: true}, ""},
		"a key that moved back":     {Check{Records: moved(all, 3, 5), Repartitioned: true}, ""},
		"reordered in a partition":  {Check{Records: moved(swapped, 5), Repartitioned: true}, "O"},
		"moved for no reason":       {Check{Records: moved(all, 3)}, "O"},
		"duplicates within bounds":  {Check{Records: twice, MaxDuplicates: 2}, ""},
		"too many duplicates":       {Check{Records: twice, MaxDuplicates: 1}, "D"},
		"a late duplicate no order": {Check{Records: append(slices.Clone(all), all[0]), MaxDuplicates: 1}, ""},
		"another payload":           {Check{Records: with(func(r *Record) { r.Payload = []byte("x") })}, "C"},
		"another key":               {Check{Records: with(func(r *Record) { r.Key = "z" })}, "C"},
		"a key that became null":    {Check{Records: with(func(r *Record) { r.Keyed, r.Key = false, "" })}, "C"},
		"another sequence":          {Check{Records: with(func(r *Record) { r.Sequence = 77 })}, "C"},
	} {
		t.Run(name, func(t *testing.T) {
			test.check.Committed = committed
			if test.check.Order == "" {
				test.check.Order = OrderKey
			}
			findings := test.check.Run()
			var letters []byte
			for _, v := range findings.Violations {
				letters = append(letters, v.Invariant)
			}
			slices.Sort(letters)
			letters = slices.Compact(letters)
			if string(letters) != test.want {
				t.Errorf("found %q, want %q:\n%s", letters, test.want, findings)
			}
		})
	}
}

func TestEffectCheckFindsEachViolation(t *testing.T) {
	t.Parallel()
	committed := rows(6)
	var all []Effect
	for i, row := range committed {
		all = append(all, Effect{Position: int64(i + 1), MessageID: row.MessageID, By: "a"})
	}
	again := append(slices.Clone(all), Effect{Position: 7, MessageID: id(2), By: "b"})
	swapped := slices.Clone(all)
	swapped[1], swapped[3] = swapped[3], swapped[1] // 4 before 2, both of key b
	crossed := slices.Clone(all)
	crossed[0], crossed[1] = crossed[1], crossed[0] // 2 before 1, of different keys
	for name, test := range map[string]struct {
		check EffectCheck
		want  string // letters
		text  string
	}{
		"nothing":                {EffectCheck{Effects: all, Ordered: true}, "", ""},
		"an effect twice":        {EffectCheck{Effects: again, Ordered: true}, "E", id(2).String() + " had its effect again: #7 by b, after #2 by a"},
		"an effect missing":      {EffectCheck{Effects: all[:5]}, "E", "id 6 ("},
		"an effect of nothing":   {EffectCheck{Effects: append(slices.Clone(all), Effect{MessageID: id(99)})}, "E", "no transaction"},
		"of a rolled back one":   {EffectCheck{Effects: append(slices.Clone(all), Effect{MessageID: id(98)}), Undone: map[outbox.UUID]string{id(98): "rolled back"}}, "E", "rolled back"},
		"a key out of order":     {EffectCheck{Effects: swapped, Ordered: true}, "O", "id 2 of key \"b\""},
		"no order wanted":        {EffectCheck{Effects: swapped}, "", ""},
		"keys beside each other": {EffectCheck{Effects: crossed, Ordered: true}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.check.Committed = committed
			findings := test.check.Run()
			var letters []byte
			for _, v := range findings.Violations {
				letters = append(letters, v.Invariant)
			}
			if string(letters) != test.want || !strings.Contains(findings.String(), test.text) {
				t.Errorf("found %q, want %q and %q:\n%s", letters, test.want, test.text, findings)
			}
		})
	}
}

// moved puts the records from each of the places on into another partition, and
// back.
func moved(records []Record, places ...int) []Record {
	records = slices.Clone(records)
	for _, place := range places {
		for i := place; i < len(records); i++ {
			records[i].Partition = 1 - records[i].Partition
		}
	}
	return records
}

func TestCheckNamesAFewOffenders(t *testing.T) {
	findings := Check{Committed: rows(50), Undone: map[outbox.UUID]string{id(99): "its savepoint was rolled back"}, Records: []Record{{MessageID: id(99), Where: "t/3@7"}}}.Run()
	text := findings.String()
	for _, want := range []string{"L: id 1 (", "L: and 45 more", "P: " + id(99).String(), "t/3@7", "its savepoint was rolled back"} {
		if !strings.Contains(text, want) {
			t.Errorf("the findings do not say %q:\n%s", want, text)
		}
	}
}

func TestMarkedRowsMustBeInTheBroker(t *testing.T) {
	records := recordsOf(rows(3))
	if missing := notIn([]outbox.UUID{id(1), id(3)}, records); len(missing) != 0 {
		t.Errorf("missing: %v, want none", missing)
	}
	if missing := notIn([]outbox.UUID{id(1), id(4)}, records); len(missing) != 1 || missing[0] != id(4) {
		t.Errorf("missing: %v, want %v", missing, id(4))
	}
}
