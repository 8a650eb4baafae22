package e2e_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// sagaState is an order as the order service has it.
type sagaState struct{ ID, Status, Payment, Stock string }

// verify fails the test unless the saga, which is settled, did what it promises.
func (s *saga) verify() {
	s.t.Helper()
	violations := slices.Concat(s.checkEffects(), s.checkMessages())
	if len(violations) > 0 {
		s.t.Fatalf("%d violations:\n%s", len(violations), strings.Join(violations[:min(20, len(violations))], "\n"))
	}
	ends := map[string]int{}
	for _, order := range s.states() {
		ends[order.Status+", "+order.Payment+", "+order.Stock]++
	}
	if len(ends) < 4 {
		s.t.Errorf("the orders ended as %v, want all four ends", ends)
	}
	s.t.Logf("%d kills; %v", s.processes().Kills(), ends)
}

func (s *saga) states() []sagaState {
	s.t.Helper()
	return sagaRows[sagaState](s, s.orders, `SELECT id, status, payment, stock FROM orders`)
}

// checkEffects compares the three databases: each order in one final state,
// the same in all of them, and nothing of money and goods lost or made.
func (s *saga) checkEffects() (violations []string) {
	s.t.Helper()
	violate := func(format string, arguments ...any) {
		violations = append(violations, fmt.Sprintf(format, arguments...))
	}
	states := map[string]sagaState{}
	for _, state := range s.states() {
		states[state.ID] = state
	}
	payments := s.entries(s.payments, `SELECT order_id, customer, cents FROM payments ORDER BY id`)
	reservations := s.entries(s.stock, `SELECT order_id, item, quantity FROM reservations ORDER BY id`)
	spent, sold := map[string]int64{}, map[string]int64{}
	for _, order := range s.placed {
		state := states[order.ID]
		delete(states, order.ID)
		paid, reserved := payments[order.ID], reservations[order.ID]
		delete(payments, order.ID)
		delete(reservations, order.ID)
		switch state.Status {
		case "confirmed":
			spent[order.Customer] += order.TotalCents
			sold[order.Item] += order.Quantity
			if !slices.Equal(paid, order.entries(order.Customer, order.TotalCents)) || state.Payment != "taken" {
				violate("%s is confirmed, its payment %s: %v", order.ID, state.Payment, paid)
			}
			if !slices.Equal(reserved, order.entries(order.Item, order.Quantity)) || state.Stock != "reserved" {
				violate("%s is confirmed, its stock %s: %v", order.ID, state.Stock, reserved)
			}
		case "cancelled":
			if !undone(paid, order.entries(order.Customer, order.TotalCents, -order.TotalCents), state.Payment, "refunded") {
				violate("%s is cancelled, its payment %s: %v", order.ID, state.Payment, paid)
			}
			if !undone(reserved, order.entries(order.Item, order.Quantity, -order.Quantity), state.Stock, "released") {
				violate("%s is cancelled, its stock %s: %v", order.ID, state.Stock, reserved)
			}
			if state.Payment != "refused" && state.Stock != "refused" {
				violate("%s is cancelled, and nobody refused it: %+v", order.ID, state)
			}
		default:
			violate("%s is %q: %+v", order.ID, state.Status, state)
		}
	}
	for _, stray := range slices.Concat(slices.Collect(maps.Keys(states)), slices.Collect(maps.Keys(payments)), slices.Collect(maps.Keys(reservations))) {
		violate("nobody placed %s", stray)
	}
	s.checkConserved(violate, s.payments, `SELECT customer, balance_cents FROM accounts`, s.balance, spent)
	s.checkConserved(violate, s.stock, `SELECT item, available FROM items`, s.available, sold)
	return violations
}

// sagaEntry is a payment, or a reservation.
type sagaEntry struct {
	Of     string
	Amount int64
}

func (o sagaOrder) entries(of string, amounts ...int64) (entries []sagaEntry) {
	for _, amount := range amounts {
		entries = append(entries, sagaEntry{of, amount})
	}
	return entries
}

// undone says whether what was done for a cancelled order was undone, or was
// refused.
func undone(entries, both []sagaEntry, state, word string) bool {
	if len(entries) == 0 {
		return state == "refused"
	}
	return state == word && slices.Equal(entries, both)
}

// entries are each order's.
func (s *saga) entries(service *sagaService, query string) map[string][]sagaEntry {
	s.t.Helper()
	entries := map[string][]sagaEntry{}
	for _, row := range sagaRows[struct {
		OrderID string
		sagaEntry
	}](s, service, query) {
		entries[row.OrderID] = append(entries[row.OrderID], row.sagaEntry)
	}
	return entries
}

// checkConserved compares what is left of each with what it was.
func (s *saga) checkConserved(violate func(string, ...any), service *sagaService, query string, initial int64, gone map[string]int64) {
	s.t.Helper()
	for _, left := range sagaRows[sagaEntry](s, service, query) {
		if left.Amount != initial-gone[left.Of] {
			violate("%s has %d left of %d, want %d less", left.Of, left.Amount, initial, gone[left.Of])
		}
	}
}

// checkMessages demands that no message was lost or parked, and that each names
// its cause and its saga.
func (s *saga) checkMessages() (violations []string) {
	s.t.Helper()
	violate := func(format string, arguments ...any) {
		violations = append(violations, fmt.Sprintf(format, arguments...))
	}
	type message struct{ ID, Key, Type, Correlation, Causation string }
	written := map[string][]message{}
	roots := map[string]string{}
	keys := map[string]string{}
	for _, service := range s.services {
		written[service.name] = sagaRows[message](s, service, `
SELECT message_id::text, key, type, coalesce(headers->>'correlation-id', ''), coalesce(headers->>'causation-id', '') FROM outbox`)
		for _, m := range written[service.name] {
			keys[m.ID] = m.Key
			if m.Type == "OrderPlaced" {
				roots[m.Key] = m.ID
			}
		}
	}
	for _, service := range s.services {
		seen := map[string]bool{}
		for _, id := range sagaRows[struct{ ID string }](s, service, `SELECT message_id::text FROM inbox`) {
			seen[id.ID] = true
		}
		for _, read := range service.reads {
			for _, m := range written[read.name] {
				if !seen[m.ID] {
					violate("%s never had %s's message %s: %s of %s", service.name, read.name, m.ID, m.Type, m.Key)
				}
			}
		}
		if n := scenario.One[int](s.t, service.Database, `SELECT count(*) FROM inbox_parked`); n > 0 {
			violate("%s parked %d messages", service.name, n)
		}
		for _, m := range written[service.name] {
			switch {
			case m.Type == "OrderPlaced":
				if m.Correlation != "" || m.Causation != "" {
					violate("%s of %s answers nothing, and names %s and %s", m.Type, m.Key, m.Correlation, m.Causation)
				}
			case m.Correlation != roots[m.Key]:
				violate("%s of %s has the correlation id %q, want %s", m.Type, m.Key, m.Correlation, roots[m.Key])
			case keys[m.Causation] != m.Key:
				violate("%s of %s names %q as its cause, which is of %q", m.Type, m.Key, m.Causation, keys[m.Causation])
			}
		}
	}
	return violations
}

// delivered is how many deliveries there are when each message is delivered once
// to each service that reads it.
func (s *saga) delivered() (n int) {
	s.t.Helper()
	for _, service := range s.services {
		for _, read := range service.reads {
			n += scenario.One[int](s.t, read.Database, `SELECT count(*) FROM outbox`)
		}
	}
	return n
}

// sagaRows are what a query yields.
func sagaRows[T any](s *saga, service *sagaService, query string) []T {
	s.t.Helper()
	rows, err := service.Pool.Query(s.t.Context(), query)
	if err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	if err != nil {
		s.t.Fatalf("%s: %v", query, err)
	}
	return all
}
