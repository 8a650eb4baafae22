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

// holds are the topics that wait because their destination takes nothing, and
// the keys and rows that wait because a part of it does not. They are this
// process's memory, about a moment: another relay finds out for itself. What a
// broker refuses for what it is, is held back by the source instead. Not safe
// for concurrent use.
type holds struct {
	keys map[source.Key]*hold
	ids  map[int64]*hold
	// places are the destinations that take nothing, and topics those by the
	// topics that are known to lead there.
	places map[place]*hold
	topics map[string]*hold
	// everything is held back in a total order.
	everything *hold
	// parts counts the keys and rows by topic, and has the reason that was told.
	parts   map[string]*part
	version uint64
	// nextExpiry is when the first active hold ends; zero without one.
	nextExpiry time.Time
}

// place is a destination at a sink, or, where that is not known, a topic.
type place struct {
	sink, exchange, destination, topic string
}

// hold is a breaker: it counts failures in a row, is active for a while after
// each, and then half open, when one batch tries it.
type hold struct {
	topic    string
	place    place
	failures int
	until    time.Time
	reason   string
	// active: it is part of the exclusion.
	active bool
	// probing: a batch under way tries it, and it is part of the exclusion.
	probing bool
}

// part is what of a topic waits key by key.
type part struct {
	waiting int
	reason  string
}

func newHolds() *holds {
	return &holds{
		keys: map[source.Key]*hold{}, ids: map[int64]*hold{},
		places: map[place]*hold{}, topics: map[string]*hold{}, parts: map[string]*part{},
	}
}

// scope is what a failure holds back: one of a destination, a key, a row,
// everything.
type scope struct {
	topic string
	// place, where wholeTopic is set, is where all rows of the topic go.
	wholeTopic bool
	place      place
	key        []byte
	id         int64
	everything bool
}

// add counts a failure and holds its scope back. It reports the pause, how many
// failures in a row that makes, and whether it is news: the first failure of a
// destination, or of a part of a topic, or one for another reason.
func (h *holds) add(now time.Time, s scope, reason string, backoff Backoff) (failures int, pause time.Duration, news bool) {
	entry := h.entry(s)
	if entry.active {
		// A second message of one batch, or another batch that was under way.
		return entry.failures, entry.until.Sub(now), false
	}
	news = reason != entry.reason
	if part, ok := h.parts[s.topic]; ok && (entry.place == place{}) {
		news = reason != part.reason
		part.reason = reason
	}
	entry.failures++
	pause = backoff.pause(entry.failures)
	entry.until, entry.active, entry.probing, entry.reason = now.Add(pause), true, false, reason
	h.version++
	h.expectExpiry(entry)
	return entry.failures, pause, news
}

func (h *holds) entry(s scope) *hold {
	switch {
	case s.everything:
		if h.everything == nil {
			h.everything = &hold{place: place{topic: s.topic}}
		}
		return h.everything
	case s.wholeTopic || len(h.keys)+len(h.ids) >= maxHolds:
		if !s.wholeTopic {
			s.place = place{topic: s.topic}
		}
		entry, ok := h.places[s.place]
		if !ok {
			entry = &hold{topic: s.topic, place: s.place}
			h.places[s.place] = entry
		}
		if h.topics[s.topic] != entry { // one more topic that leads there
			h.topics[s.topic] = entry
			h.version++
		}
		return entry
	case s.key != nil:
		return entryOf(h, h.keys, source.Key{Topic: s.topic, Key: string(s.key)}, s.topic)
	default:
		return entryOf(h, h.ids, s.id, s.topic)
	}
}

func entryOf[K comparable](h *holds, entries map[K]*hold, key K, topic string) *hold {
	entry, ok := entries[key]
	if !ok {
		entry = &hold{topic: topic}
		entries[key] = entry
		if h.parts[topic] == nil {
			h.parts[topic] = &part{}
		}
		h.parts[topic].waiting++
	}
	return entry
}

// begin tells that a batch has messages of the topic, and returns the hold that
// it tries, nil for most: it is the only batch to do so until it ends.
func (h *holds) begin(topic string) *hold {
	entry := h.everything
	if entry == nil {
		entry = h.topics[topic]
	}
	if entry == nil || entry.active || entry.probing {
		return nil
	}
	entry.probing = true
	h.version++
	return entry
}

// end tells that a batch that tried a hold has ended, whatever became of it.
func (h *holds) end(entry *hold) {
	if entry.probing {
		entry.probing = false
		h.version++
	}
}

// published forgets the failures of what a message got through: its key's and its
// destination's. It returns a hold that ends with it where that is news: of a
// destination, or the last one of a topic.
func (h *holds) published(topic string, key []byte, id int64) (back *hold) {
	if h.empty() {
		return nil
	}
	if h.everything != nil && !h.everything.active {
		back = h.everything
		h.everything = nil
		h.version++
	}
	if entry, ok := h.topics[topic]; ok && !entry.active {
		h.forget(entry)
		back = entry
	}
	if key == nil {
		if entry, ok := h.ids[id]; ok && !entry.active {
			back = removeOf(h, h.ids, id)
		}
	} else if entry, ok := h.keys[source.Key{Topic: topic, Key: string(key)}]; ok && !entry.active {
		back = removeOf(h, h.keys, source.Key{Topic: topic, Key: string(key)})
	}
	return back
}

// forget forgets a destination.
func (h *holds) forget(entry *hold) {
	delete(h.places, entry.place)
	for topic, other := range h.topics {
		if other == entry {
			delete(h.topics, topic)
		}
	}
	h.version++
}

// removeOf forgets a key or a row, and returns it if it was the topic's last.
func removeOf[K comparable](h *holds, entries map[K]*hold, key K) (last *hold) {
	entry := entries[key]
	delete(entries, key)
	if h.parts[entry.topic].waiting--; h.parts[entry.topic].waiting > 0 {
		return nil
	}
	delete(h.parts, entry.topic)
	return entry
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
	for key, entry := range h.keys {
		if h.expired(entry, now) {
			removeOf(h, h.keys, key)
		}
	}
	for id, entry := range h.ids {
		if h.expired(entry, now) {
			removeOf(h, h.ids, id)
		}
	}
	for _, entry := range h.places {
		if h.expired(entry, now) {
			h.forget(entry)
		}
	}
	if h.everything != nil {
		h.expired(h.everything, now)
	}
}

// expired ends the hold's pause if it is over, and reports whether it can be
// forgotten.
func (h *holds) expired(entry *hold, now time.Time) bool {
	if !now.Before(entry.until) {
		entry.active = false
	}
	h.expectExpiry(entry)
	return !entry.active && !entry.probing && now.Sub(entry.until) > forgetHold
}

// expectExpiry notes when an active hold ends.
func (h *holds) expectExpiry(entry *hold) {
	if entry.active && (h.nextExpiry.IsZero() || entry.until.Before(h.nextExpiry)) {
		h.nextExpiry = entry.until
	}
}

// all reports whether everything is held back.
func (h *holds) all() bool {
	return h.everything != nil && (h.everything.active || h.everything.probing)
}

// exclude adds the active holds to an exclusion.
func (h *holds) exclude(exclusion *source.Exclusion) {
	for topic, entry := range h.topics {
		if entry.active || entry.probing {
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
