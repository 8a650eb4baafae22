// Package route decides which sink a row goes to and under which name. It
// knows neither sources nor the delivery.
package route

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/outboxrelay/relay/internal/route/pattern"
	"github.com/outboxrelay/relay/sinks"
)

// Target is where one row goes.
type Target struct {
	Route *Route
	// Destination is a Kafka topic or a RabbitMQ routing key; never empty.
	Destination string
	// Exchange is RabbitMQ's; empty means the sink's own.
	Exchange string
}

// Table is the compiled list of routes. Its methods may be called
// concurrently.
type Table struct {
	routes []*Route
	// usesType is false when no row's target depends on its type.
	usesType bool

	mutex sync.RWMutex
	cache map[cacheKey]resolved
}

type cacheKey struct{ topic, typ string }

type resolved struct {
	target Target
	err    error
}

// cacheSize bounds the cache against an application that makes up topics or
// types without end.
const cacheSize = 8192

// Routes returns the routes in the order in which they are tried. Without
// routes in the configuration it is one that matches everything. The slice
// must not be changed.
func (t *Table) Routes() []*Route { return t.routes }

// DependsOnType reports whether rows of one topic may go to different places
// because of their types.
func (t *Table) DependsOnType() bool { return t.usesType }

// Resolve returns where a row goes: the first route that matches decides. The
// key is nil for SQL's null.
//
// The error is a *sinks.Error. It concerns the destination when no route
// matches the row, and the message, permanently, when its route's template
// makes an empty or impossible name of it; Target.Route is set then. Resolve
// keeps neither string nor the key; for rows whose target does not depend on
// their key it allocates nothing, but for the first of a topic and type.
func (t *Table) Resolve(topic, typ string, key []byte) (Target, error) {
	lookup := cacheKey{topic: topic}
	if t.usesType {
		lookup.typ = typ
	}
	t.mutex.RLock()
	known, ok := t.cache[lookup]
	t.mutex.RUnlock()
	if !ok {
		// What is remembered must not share memory with the row.
		lookup = cacheKey{strings.Clone(lookup.topic), strings.Clone(lookup.typ)}
		known = t.resolve(lookup)
		t.remember(lookup, known)
	}
	if known.err == nil && known.target.Route.usesKey {
		return known.target.Route.target(topic, typ, key)
	}
	return known.target, known.err
}

// resolve finds the route, and the target unless that depends on the key.
func (t *Table) resolve(row cacheKey) resolved {
	for _, route := range t.routes {
		if !route.Matches(row.topic, row.typ) {
			continue
		}
		if route.usesKey {
			return resolved{target: Target{Route: route, Exchange: route.exchange}}
		}
		target, err := route.target(row.topic, row.typ, nil)
		return resolved{target, err}
	}
	return resolved{err: noRoute(row.topic, row.typ)}
}

func (t *Table) remember(row cacheKey, known resolved) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if len(t.cache) >= cacheSize {
		clear(t.cache)
	}
	t.cache[row] = known
}

func noRoute(topic, typ string) error {
	return &sinks.Error{
		Scope:  sinks.ScopeDestination,
		Reason: "no_route",
		Err:    fmt.Errorf("no route matches topic %q, type %q; add one, for example a last route with match: {topic: \"*\"}", topic, typ),
	}
}

// validName reports what is wrong with a destination of the sink's kind.
func validName(destination string, isKafka bool) error {
	if destination == "" {
		return errors.New("is empty")
	}
	if isKafka {
		return pattern.ValidKafkaTopic(destination)
	}
	return nil
}
