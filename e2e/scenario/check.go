package scenario

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/outboxrelay/relay/outbox"
)

// Row is an outbox row that was committed, as its transaction recorded it.
type Row struct {
	ID        int64
	MessageID outbox.UUID
	Topic     string
	Key       string
	Keyed     bool
	// Digest is the payload's.
	Digest []byte
	// Delayed rows have no place in their key's order.
	Delayed bool
}

// Order is what O demands.
type Order string

// The orderings of the outbox.
const (
	OrderKey   Order = "key"
	OrderNone  Order = "none"
	OrderTotal Order = "total"
)

// Check compares what was committed with what the broker holds.
type Check struct {
	Committed []Row
	// Undone says why a message was not committed, or is no more.
	Undone  map[outbox.UUID]string
	Records []Record
	Order   Order
	// Repartitioned: topics were given more partitions, so that the later
	// messages of a key may be in another one than the earlier. Order is within a
	// partition then: several relays learn of it at different moments, and Kafka
	// has no order between partitions.
	Repartitioned bool
	// MaxDuplicates is the bound of D.
	MaxDuplicates int
}

// Violation is one offence against the invariant with the letter.
type Violation struct {
	Invariant byte
	Text      string
}

// Findings is the result of a check.
type Findings struct {
	Violations []Violation
	// Duplicates is how many records came again.
	Duplicates int
}

// Run finds all violations.
func (c Check) Run() Findings {
	var f Findings
	rows := make(map[outbox.UUID]Row, len(c.Committed))
	for _, row := range c.Committed {
		rows[row.MessageID] = row
	}
	seen := make(map[outbox.UUID]Record, len(c.Records))
	order := newOrderCheck(c.Order, c.Repartitioned)
	var again []string
	for _, record := range c.Records {
		if first, ok := seen[record.MessageID]; ok {
			again = append(again, fmt.Sprintf("%s, first %s", describe(record), first.Where))
			continue
		}
		seen[record.MessageID] = record
		row, ok := rows[record.MessageID]
		if !ok {
			f.add('P', "%s: %s", describe(record), reasonOf(c.Undone, record.MessageID))
			continue
		}
		if difference := row.difference(record); difference != "" {
			f.add('C', "%s: %s", describe(record), difference)
		}
		if offence := order.next(row, record); offence != "" {
			f.add('O', "%s: %s", describe(record), offence)
		}
	}
	for _, row := range c.Committed {
		if _, ok := seen[row.MessageID]; !ok {
			f.add('L', "id %d (%s) of topic %s key %q was committed and is not in the broker", row.ID, row.MessageID, row.Topic, row.Key)
		}
	}
	f.Duplicates = len(again)
	if len(again) > c.MaxDuplicates {
		f.add('D', "%d duplicates, at most %d could be in flight; %s", len(again), c.MaxDuplicates, strings.Join(again[:min(3, len(again))], "; "))
	}
	return f
}

func (f *Findings) add(invariant byte, format string, arguments ...any) {
	f.Violations = append(f.Violations, Violation{invariant, fmt.Sprintf(format, arguments...)})
}

func describe(r Record) string {
	return fmt.Sprintf("%s at %s (id %d, key %q)", r.MessageID, r.Where, r.Sequence, r.Key)
}

// difference names what the broker has otherwise than the row.
func (row Row) difference(record Record) string {
	switch {
	case row.ID != record.Sequence:
		return fmt.Sprintf("the row's id is %d", row.ID)
	case row.Topic != record.Topic:
		return fmt.Sprintf("the row's topic is %s", row.Topic)
	case row.Keyed != record.Keyed || row.Key != record.Key:
		return fmt.Sprintf("the row's key is %q, null: %t", row.Key, !row.Keyed)
	case !slices.Equal(row.Digest, Digest(record.Payload)):
		return fmt.Sprintf("the payload is another: %.80q", record.Payload)
	}
	return ""
}

// orderCheck follows the first occurrences.
type orderCheck struct {
	order         Order
	repartitioned bool
	latest        map[string]Record
}

func newOrderCheck(order Order, repartitioned bool) *orderCheck {
	return &orderCheck{order: order, repartitioned: repartitioned, latest: map[string]Record{}}
}

// next says what is wrong with the place of the record.
func (o *orderCheck) next(row Row, record Record) string {
	if o.order == OrderNone || row.Delayed || (!row.Keyed && o.order != OrderTotal) {
		return ""
	}
	sequence := row.Topic + "\x00" + row.Key
	if o.order == OrderTotal {
		sequence = ""
	}
	place := sequence
	if o.repartitioned {
		place += "\x00" + strconv.Itoa(record.Partition)
	}
	last, ok := o.latest[place]
	if ok && last.Partition != record.Partition {
		return "its key is in partition " + fmt.Sprint(last.Partition) + " too, " + last.Where
	}
	if ok && last.Sequence > row.ID {
		return fmt.Sprintf("came after id %d, %s", last.Sequence, last.Where)
	}
	record.Sequence = row.ID
	o.latest[place] = record
	return ""
}

// perInvariant is how many offences of each invariant are shown.
const perInvariant = 5

// String names the first few violations of each invariant, a line each.
func (f Findings) String() string {
	var b strings.Builder
	shown := map[byte]int{}
	for _, v := range f.Violations {
		shown[v.Invariant]++
		if shown[v.Invariant] <= perInvariant {
			fmt.Fprintf(&b, "%c: %s\n", v.Invariant, v.Text)
		}
	}
	for _, invariant := range "LPOMDCE" {
		if more := shown[byte(invariant)] - perInvariant; more > 0 {
			fmt.Fprintf(&b, "%c: and %d more\n", invariant, more)
		}
	}
	return b.String()
}
