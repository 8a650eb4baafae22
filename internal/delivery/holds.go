package delivery

import (
	"time"

	"github.com/outboxrelay/relay/internal/source"
)

const (
	// maxHolds bounds the keys and rows that are held back one by one. Beyond it
	// their topic is held back as a whole: a claim's exclusions must stay small.
	maxHolds = 10_000
	// forgetHold is how long after its retry a hold is remembered that did not
	// fail again and did not succeed: its row was cancelled, or another relay
	// has it.
	forgetHold = 10 * time.Minute
)

// holds are the keys, rows and topics that wait for a retry after the broker
// refused a message. They are this process's memory: another relay finds out
// for itself. Not safe for concurrent use.
type holds struct {
	keys   map[source.Key]*hold
	ids    map[int64]*hold
	topics map[string]*hold
	// everything is held back in a total order.
	everything *hold
	version    uint64
	// nextExpiry is when the first active hold ends; zero without one.
	nextExpiry time.Time
}

// hold counts the failures of one key, row or topic in a row.
type hold struct {
	topic    string
	failures int
	until    time.Time
	// active: it is part of the exclusion.
	active bool
}

func newHolds() *holds {
	return &holds{keys: map[source.Key]*hold{}, ids: map[int64]*hold{}, topics: map[string]*hold{}}
}

// scope is what a failure holds back: one of a topic, a key, a row, everything.
type scope struct {
	topic      string
	wholeTopic bool
	key        []byte
	id         int64
	everything bool
}

// add counts a failure and holds its scope back. It reports how many failures
// in a row that makes, the pause, and whether it was not held back already.
func (h *holds) add(now time.Time, s scope, backoff Backoff) (failures int, pause time.Duration, first bool) {
	entry := h.entry(s)
	if entry.active {
		// A second message of one batch, or another batch that was under way.
		return entry.failures, entry.until.Sub(now), false
	}
	entry.failures++
	pause = backoff.pause(entry.failures)
	entry.until, entry.active = now.Add(pause), true
	h.version++
	h.expectExpiry(entry)
	return entry.failures, pause, true
}

func (h *holds) entry(s scope) *hold {
	switch {
	case s.everything:
		if h.everything == nil {
			h.everything = &hold{}
		}
		return h.everything
	case s.wholeTopic || len(h.keys)+len(h.ids) >= maxHolds:
		return entryOf(h.topics, s.topic, s.topic)
	case s.key != nil:
		return entryOf(h.keys, source.Key{Topic: s.topic, Key: string(s.key)}, s.topic)
	default:
		return entryOf(h.ids, s.id, s.topic)
	}
}

func entryOf[K comparable](entries map[K]*hold, key K, topic string) *hold {
	entry, ok := entries[key]
	if !ok {
		entry = &hold{topic: topic}
		entries[key] = entry
	}
	return entry
}

// published forgets the failures of a message that got through at last.
func (h *holds) published(topic string, key []byte, id int64) {
	if h.empty() {
		return
	}
	h.everything = nil
	if entry, ok := h.topics[topic]; ok && !entry.active {
		delete(h.topics, topic)
	}
	if key == nil {
		delete(h.ids, id)
	} else if entry, ok := h.keys[source.Key{Topic: topic, Key: string(key)}]; ok && !entry.active {
		delete(h.keys, source.Key{Topic: topic, Key: string(key)})
	}
}

func (h *holds) empty() bool {
	return h.everything == nil && len(h.topics) == 0 && len(h.keys) == 0 && len(h.ids) == 0
}

// expire ends the holds whose pause is over.
func (h *holds) expire(now time.Time) {
	if h.nextExpiry.IsZero() || now.Before(h.nextExpiry) {
		return
	}
	h.version++
	h.nextExpiry = time.Time{}
	expireAll(h, h.keys, now)
	expireAll(h, h.ids, now)
	expireAll(h, h.topics, now)
	if h.everything != nil {
		h.everything.expire(now)
		h.expectExpiry(h.everything)
	}
}

func expireAll[K comparable](h *holds, entries map[K]*hold, now time.Time) {
	for key, entry := range entries {
		entry.expire(now)
		h.expectExpiry(entry)
		if !entry.active && now.Sub(entry.until) > forgetHold {
			delete(entries, key)
		}
	}
}

func (e *hold) expire(now time.Time) {
	if !now.Before(e.until) {
		e.active = false
	}
}

// expectExpiry notes when an active hold ends.
func (h *holds) expectExpiry(entry *hold) {
	if entry.active && (h.nextExpiry.IsZero() || entry.until.Before(h.nextExpiry)) {
		h.nextExpiry = entry.until
	}
}

// all reports whether everything is held back.
func (h *holds) all() bool { return h.everything != nil && h.everything.active }

// exclude adds the active holds to an exclusion.
func (h *holds) exclude(exclusion *source.Exclusion) {
	for topic, entry := range h.topics {
		if entry.active {
			exclusion.Topics = append(exclusion.Topics, topic)
		}
	}
	for key, entry := range h.keys {
		if entry.active {
			exclusion.Keys = append(exclusion.Keys, key)
		}
	}
	for id, entry := range h.ids {
		if entry.active {
			exclusion.IDs = append(exclusion.IDs, id)
		}
	}
}
