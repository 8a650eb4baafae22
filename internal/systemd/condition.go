package systemd

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/outboxrelay/relay/internal/delivery"
)

// condition is how the relay fares, in short. Its methods may be called
// concurrently.
type condition struct {
	// changed holds a token when the condition has changed.
	changed chan struct{}

	mutex      sync.Mutex
	databaseUp bool
	sinksDown  map[string]bool
}

func newCondition() *condition {
	return &condition{changed: make(chan struct{}, 1), sinksDown: map[string]bool{}}
}

// status is one line for an operator; ready: the database was reached.
func (c *condition) status(ready bool) string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	down := slices.Sorted(maps.Keys(c.sinksDown))
	switch {
	case !ready:
		return "Waiting for the database"
	case !c.databaseUp:
		return "Waiting for the database to come back"
	case len(down) > 0:
		return "Relaying, but no answer from " + strings.Join(down, ", ")
	}
	return "Relaying"
}

// database and sink take what a loop tells, which is mostly nothing new.
func (c *condition) database(up bool) {
	c.mutex.Lock()
	changed := c.databaseUp != up
	c.databaseUp = up
	c.mutex.Unlock()
	if changed {
		c.announce()
	}
}

func (c *condition) sink(name string, up bool) {
	c.mutex.Lock()
	changed := c.sinksDown[name] == up
	if up {
		delete(c.sinksDown, name)
	} else {
		c.sinksDown[name] = true
	}
	c.mutex.Unlock()
	if changed {
		c.announce()
	}
}

func (c *condition) announce() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// observed tells the condition what of a loop's doings it is interested in.
type observed struct {
	delivery.Observer
	condition *condition
}

func (o observed) DatabaseUp(up bool) {
	o.Observer.DatabaseUp(up)
	o.condition.database(up)
}

func (o observed) SinkUp(sink string, up bool) {
	o.Observer.SinkUp(sink, up)
	o.condition.sink(sink, up)
}
