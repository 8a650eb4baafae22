package demo

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/outboxrelay/relay/outbox"
)

// Event is a message whose transaction committed, as the service recorded it
// in that transaction.
type Event struct {
	MessageID outbox.UUID
	Key       string
	// Sequence is the outbox row's id.
	Sequence int64
}

// Undone is a message whose transaction or savepoint rolled back.
type Undone struct {
	MessageID outbox.UUID
	Reason    string
}

// Record is a message as it was found in the broker.
type Record struct {
	MessageID outbox.UUID
	Key       string
	// Where is the place for people: a partition and offset, or a queue.
	Where string
}

// Arrivals are the records of the broker in the order of their arrival, which
// is the broker's own for each key. It may be used concurrently.
type Arrivals struct {
	mu       sync.Mutex
	records  []Record
	distinct map[outbox.UUID]struct{}
}

// Add appends a record.
func (a *Arrivals) Add(r Record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.distinct == nil {
		a.distinct = make(map[outbox.UUID]struct{})
	}
	a.records = append(a.records, r)
	a.distinct[r.MessageID] = struct{}{}
}

// Count returns how many records there are, and of how many messages.
func (a *Arrivals) Count() (records, messages int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.records), len(a.distinct)
}

// Records returns all records so far.
func (a *Arrivals) Records() []Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.records)
}

// Tally is what the comparison of the database with the broker, and of both
// databases, found. The lists name each offender for people.
type Tally struct {
	// Committed and RolledBack are messages, Records what the broker holds.
	Committed, RolledBack, Records int
	// Missing were committed and are not in the broker.
	Missing []string
	// Phantom are in the broker and were not committed.
	Phantom []string
	// OutOfOrder arrived first after a later message of their key did.
	OutOfOrder []string
	// Duplicates are records beyond the first of each message.
	Duplicates int
	// Shipping is the other side of the broker.
	Shipping Shipping
}

// Shipping is what the comparison of the orders that were paid with the
// shipments found.
type Shipping struct {
	// Paid are the orders to ship.
	Paid int
	// Once is how many of them were shipped exactly once.
	Once int
	// Twice were shipped more than once, Never not at all, and Unpaid were
	// shipped although no payment of them was committed.
	Twice, Never, Unpaid []string
	// Refused is how many deliveries the inbox refused as duplicates.
	Refused int
}

// CompareShipments counts and names what is wrong with the shipments: for each
// order, how often it was shipped.
func CompareShipments(paid []string, shipments map[string]int) Shipping {
	shipping := Shipping{Paid: len(paid)}
	due := make(map[string]struct{}, len(paid))
	for _, order := range paid {
		due[order] = struct{}{}
		switch n := shipments[order]; n {
		case 0:
			shipping.Never = append(shipping.Never, "order "+order)
		case 1:
			shipping.Once++
		default:
			shipping.Twice = append(shipping.Twice, fmt.Sprintf("order %s, %d times", order, n))
		}
	}
	for _, order := range slices.Sorted(maps.Keys(shipments)) {
		if _, ok := due[order]; !ok {
			shipping.Unpaid = append(shipping.Unpaid, "order "+order)
		}
	}
	return shipping
}

// Clean reports whether every paid order was shipped once and no other was.
func (s Shipping) Clean() bool {
	return len(s.Twice) == 0 && len(s.Never) == 0 && len(s.Unpaid) == 0
}

// Compare counts and names what is wrong with the records.
func Compare(committed []Event, undone []Undone, records []Record) Tally {
	tally := Tally{Committed: len(committed), RolledBack: len(undone), Records: len(records)}
	events := make(map[outbox.UUID]Event, len(committed))
	for _, e := range committed {
		events[e.MessageID] = e
	}
	reasons := make(map[outbox.UUID]string, len(undone))
	for _, u := range undone {
		reasons[u.MessageID] = u.Reason
	}
	seen := make(map[outbox.UUID]struct{}, len(committed))
	latest := make(map[string]Event)
	for _, r := range records {
		if _, again := seen[r.MessageID]; again {
			tally.Duplicates++
			continue
		}
		seen[r.MessageID] = struct{}{}
		event, ok := events[r.MessageID]
		if !ok {
			reason := "nobody recorded it"
			if why, known := reasons[r.MessageID]; known {
				reason = "rolled back: " + why
			}
			tally.Phantom = append(tally.Phantom, fmt.Sprintf("%s of key %q at %s (%s)", r.MessageID, r.Key, r.Where, reason))
			continue
		}
		if last, ok := latest[event.Key]; ok && last.Sequence > event.Sequence {
			tally.OutOfOrder = append(tally.OutOfOrder, fmt.Sprintf("%s (sequence %d) of key %q at %s came after sequence %d", r.MessageID, event.Sequence, event.Key, r.Where, last.Sequence))
			continue
		}
		latest[event.Key] = event
	}
	for _, e := range committed {
		if _, ok := seen[e.MessageID]; !ok {
			tally.Missing = append(tally.Missing, fmt.Sprintf("%s (sequence %d) of key %q", e.MessageID, e.Sequence, e.Key))
		}
	}
	return tally
}

// Clean reports whether nothing is missing, phantom or out of order, no more
// came twice than the kills explain, and the shipments are clean.
func (t Tally) Clean(explained int) bool {
	return t.Shipping.Clean() && len(t.Missing) == 0 && len(t.Phantom) == 0 && len(t.OutOfOrder) == 0 && t.Duplicates <= explained
}

// Offenders names the first few of each kind, a line each.
func (t Tally) Offenders() string {
	const limit = 5
	var b strings.Builder
	for _, kind := range []struct {
		name  string
		found []string
	}{
		{"missing", t.Missing}, {"phantom", t.Phantom}, {"out of order", t.OutOfOrder},
		{"shipped twice", t.Shipping.Twice}, {"never shipped", t.Shipping.Never}, {"shipped unpaid", t.Shipping.Unpaid},
	} {
		for i, offender := range kind.found {
			if i == limit {
				fmt.Fprintf(&b, "%s: and %d more\n", kind.name, len(kind.found)-limit)
				break
			}
			fmt.Fprintf(&b, "%s: %s\n", kind.name, offender)
		}
	}
	return b.String()
}
