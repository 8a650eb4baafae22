package route

import (
	"strings"

	"github.com/outboxrelay/relay/internal/route/pattern"
)

// Filter selects rows by where they are routed. It answers the same in Go and
// in SQL. It is immutable; the zero value selects every row.
type Filter struct {
	table *Table
	// sink is empty for the rows that no route matches.
	sink string
	all  bool
	none bool
}

// Filter returns the filter of the rows whose first matching route leads to the
// sink.
func (t *Table) Filter(sink string) Filter { return newFilter(t, sink) }

// Unrouted returns the filter of the rows that no route matches.
func (t *Table) Unrouted() Filter { return newFilter(t, "") }

func newFilter(t *Table, sink string) Filter {
	f := Filter{table: t, sink: sink}
	sql := f.SQL("topic", "type")
	f.all, f.none = sql == always, sql == never
	return f
}

// All reports that the filter selects every row.
func (f Filter) All() bool { return f.all || f.table == nil }

// None reports that the filter selects no row. It may miss cases.
func (f Filter) None() bool { return f.none }

// Match reports whether the filter selects rows of this topic and type.
func (f Filter) Match(topic, typ string) bool {
	if f.All() || f.None() {
		return f.All()
	}
	for _, route := range f.table.routes {
		if route.Matches(topic, typ) {
			return route.sink == f.sink
		}
	}
	return f.sink == ""
}

const (
	always = "true"
	never  = "false"
)

// SQL returns Match as a boolean expression of two columns, which are of type
// text and never null. It holds constants only, and means the same in every
// database. What is selected by every claim is cheap: equality for plain
// topics, LIKE for mail.* (see [pattern.Glob.SQL]).
func (f Filter) SQL(topicColumn, typeColumn string) string {
	if f.table == nil {
		return always
	}
	selected := never
	if f.sink == "" {
		selected = always
	}
	// From the last route to the first: what one matches is decided by it, the
	// rest by those behind it. Neighbours that lead alike are one.
	routes := f.table.routes
	for end := len(routes); end > 0; {
		first := end - 1
		leads := routes[first].sink == f.sink
		for first > 0 && (routes[first-1].sink == f.sink) == leads {
			first--
		}
		matched := anyOf(routes[first:end], topicColumn, typeColumn)
		if leads {
			selected = or(matched, selected)
		} else {
			selected = and(not(matched), selected)
		}
		end = first
	}
	return selected
}

// anyOf returns whether any of the routes matches. Plain topics are a single
// list, which PostgreSQL hashes when it is long.
func anyOf(routes []*Route, topicColumn, typeColumn string) string {
	var topics, conditions []string
	for _, route := range routes {
		topic, plain := route.topic.Literal()
		switch condition := and(route.topic.SQL(topicColumn), route.typ.SQL(typeColumn)); {
		case condition == always:
			return always
		case plain && route.typ.MatchesAll() && pattern.IsASCII(topic):
			topics = append(topics, pattern.Quote(topic))
		default:
			conditions = append(conditions, condition)
		}
	}
	if len(topics) > 0 {
		list := topicColumn + ` COLLATE "C" IN (` + strings.Join(topics, ", ") + ")"
		conditions = append([]string{list}, conditions...)
	}
	if len(conditions) == 1 {
		return conditions[0]
	}
	return "(" + strings.Join(conditions, " OR ") + ")"
}

func or(a, b string) string {
	switch {
	case a == always || b == always:
		return always
	case a == never:
		return b
	case b == never:
		return a
	}
	return "(" + a + " OR " + b + ")"
}

func and(a, b string) string {
	switch {
	case a == never || b == never:
		return never
	case a == always:
		return b
	case b == always:
		return a
	}
	return "(" + a + " AND " + b + ")"
}

func not(a string) string {
	switch a {
	case always:
		return never
	case never:
		return always
	}
	return "NOT " + a // which binds more loosely than any comparison
}
