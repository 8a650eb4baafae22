package delivery

import (
	"slices"
	"time"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

const (
	// maxParts bounds the keys and rows that have a breaker each. Beyond it
	// their topic is held back as a whole.
	maxParts = 10_000
	// maxSamples bounds the rows that a breaker is tried with: their shards wait with them for a broker that
	// takes its time.
	maxSamples = 2
	// samplesGone is after how many tries that found none of its rows a breaker closes: they were
	// cancelled, or another relay has sent them.
	samplesGone = 3
	// wholeDestination is the partition of a breaker for all of them.
	wholeDestination = -1
)

// breakers are the circuit breakers of destinations, of partitions, and of keys and rows where it is not
// known which others a failure concerns. They are this
// process's memory, about a moment: another relay finds out for itself. What a
// broker refuses for what it is, is held back by the source instead. Not safe
// for concurrent use.
type breakers struct {
	routes      *route.Table
	partitioner func(sink string) sinks.Partitioner
	places      map[place]*breaker
	keys        map[source.Key]*breaker
	ids         map[int64]*breaker
	// everything is held back in a total order.
	everything *breaker
	// parts counts the keys and rows by topic, and has the reason that was told.
	parts map[string]*part
	// shrunk counts how often something was held back no more.
	shrunk uint64
	// layouts is what the partitioners said of themselves when partitions were told apart last.
	layouts uint64
}

// place is a destination at a sink or one of its partitions, or a topic where no route leads anywhere.
type place struct {
	sink, exchange, destination, topic string
	partition                          int32
}

// breaker is open: it counts failures in a row, and after each pause the rows it was opened by are tried
// again (half-open). Where that succeeds it closes, and is forgotten.
type breaker struct {
	topic    string
	place    place
	failures int
	until    time.Time
	reason   string
	// samples are rows that failed, each the first of its key.
	samples []int64
	// trying: a batch under way tries it.
	trying bool
	// missed counts the tries that found no row.
	missed int
}

// part is what of a topic waits key by key.
type part struct {
	waiting int
	reason  string
}

func newBreakers(routes *route.Table, partitioner func(sink string) sinks.Partitioner) *breakers {
	return &breakers{
		routes: routes, partitioner: partitioner,
		places: map[place]*breaker{}, keys: map[source.Key]*breaker{}, ids: map[int64]*breaker{}, parts: map[string]*part{},
	}
}

// scope is what a failure concerns: one of a place, a key, a row, everything.
type scope struct {
	topic      string
	place      place
	hasPlace   bool
	key        []byte
	id         int64
	everything bool
}

// open counts a failure and holds its scope back. It reports the pause, how many
// failures in a row that makes, and whether it is news: the first failure of a
// destination, or of a part of a topic, or one for another reason.
func (b *breakers) open(now time.Time, s scope, reason string, backoff Backoff) (failures int, pause time.Duration, news bool) {
	entry := b.entry(s)
	if entry.failures > 0 && now.Before(entry.until) && !entry.trying {
		// A second message of one batch, or another batch that was under way.
		entry.sample(s.id)
		return entry.failures, entry.until.Sub(now), false
	}
	news = reason != entry.reason
	if part, ok := b.parts[s.topic]; ok && entry.place == (place{}) {
		news = reason != part.reason
		part.reason = reason
	}
	entry.failures++
	pause = backoff.pause(entry.failures)
	entry.until, entry.trying, entry.reason, entry.missed = now.Add(pause), false, reason, 0
	entry.sample(s.id)
	return entry.failures, pause, news
}

func (e *breaker) sample(id int64) {
	if len(e.samples) < maxSamples && !slices.Contains(e.samples, id) {
		e.samples = append(e.samples, id)
	}
}

func (b *breakers) entry(s scope) *breaker {
	switch {
	case s.everything:
		if b.everything == nil {
			b.everything = &breaker{place: place{topic: s.topic}}
		}
		return b.everything
	case s.hasPlace || len(b.keys)+len(b.ids) >= maxParts:
		if !s.hasPlace {
			s.place = place{topic: s.topic, partition: wholeDestination}
		}
		entry, ok := b.places[s.place]
		if !ok {
			entry = &breaker{topic: s.topic, place: s.place}
			b.places[s.place] = entry
		}
		return entry
	case s.key != nil:
		return partOf(b, b.keys, source.Key{Topic: s.topic, Key: string(s.key)}, s.topic)
	default:
		return partOf(b, b.ids, s.id, s.topic)
	}
}

func partOf[K comparable](b *breakers, entries map[K]*breaker, key K, topic string) *breaker {
	entry, ok := entries[key]
	if !ok {
		entry = &breaker{topic: topic}
		entries[key] = entry
		if b.parts[topic] == nil {
			b.parts[topic] = &part{}
		}
		b.parts[topic].waiting++
	}
	return entry
}

func (b *breakers) empty() bool {
	return b.everything == nil && len(b.places) == 0 && len(b.keys) == 0 && len(b.ids) == 0
}

// holds reports whether a row waits for a breaker to close.
func (b *breakers) holds(row *source.Row) bool {
	if len(b.keys) > 0 && row.Key != nil {
		if _, held := b.keys[source.Key{Topic: row.Topic, Key: string(row.Key)}]; held {
			return true
		}
	}
	if len(b.ids) > 0 && row.Key == nil {
		if _, held := b.ids[row.ID]; held {
			return true
		}
	}
	if len(b.places) == 0 {
		return false
	}
	m := sinks.Message{Sequence: row.ID, Topic: row.Topic, Type: row.Type, Key: row.Key}
	target, _ := b.routes.Resolve(row.Topic, row.Type, row.Key)
	m.Destination, m.Exchange = target.Destination, target.Exchange
	whole, part, divided := b.placesOf(&m, target)
	if b.places[whole] != nil || b.places[place{topic: row.Topic, partition: wholeDestination}] != nil {
		return true
	}
	return divided && b.places[part] != nil
}

// placesOf returns where a message goes: its destination, and the partition where that is known.
func (b *breakers) placesOf(m *sinks.Message, target route.Target) (whole, part place, divided bool) {
	if target.Route == nil {
		whole = place{topic: m.Topic, partition: wholeDestination}
		return whole, whole, false
	}
	whole = place{sink: target.Route.Sink(), exchange: target.Exchange, destination: target.Destination, partition: wholeDestination}
	part = whole
	if p := b.partitioner(whole.sink); p != nil {
		part.partition, divided = p.Partition(m)
	}
	return whole, part, divided
}

// published closes what a message got through: its key's breaker and its
// destination's, unless they have just been opened. It returns one where that is news: of a
// destination, or the last one of a topic.
func (b *breakers) published(now time.Time, m *sinks.Message, target route.Target) (closed *breaker) {
	if b.empty() {
		return nil
	}
	if b.everything.ready(now) {
		closed = b.everything
		b.everything = nil
		b.shrunk++
	}
	if at := b.answered(now, m, target); at != nil {
		closed = at
	}
	if m.Key == nil {
		if entry := b.ids[m.Sequence]; entry.ready(now) {
			closed = closePart(b, b.ids, m.Sequence)
		}
	} else if entry := b.keys[source.Key{Topic: m.Topic, Key: string(m.Key)}]; entry.ready(now) {
		closed = closePart(b, b.keys, source.Key{Topic: m.Topic, Key: string(m.Key)})
	}
	return closed
}

// answered closes the breakers of a message's destination and partition: they took it, or refused it for what
// it is.
func (b *breakers) answered(now time.Time, m *sinks.Message, target route.Target) (closed *breaker) {
	if len(b.places) == 0 {
		return nil
	}
	whole, part, divided := b.placesOf(m, target)
	places := []place{whole, {topic: m.Topic, partition: wholeDestination}}
	if divided {
		places = append(places, part)
	}
	for _, at := range places {
		if entry := b.places[at]; entry.ready(now) {
			closed = b.close(entry)
		}
	}
	return closed
}

// ready reports whether success counts: what was sent before the breaker opened says how it was.
func (e *breaker) ready(now time.Time) bool {
	return e != nil && (e.trying || !now.Before(e.until))
}

// close forgets a destination's or partition's breaker.
func (b *breakers) close(entry *breaker) *breaker {
	delete(b.places, entry.place)
	b.shrunk++
	return entry
}

// regroup takes over the partitioners' layouts. When those change a breaker of a partition no longer
// holds what it was opened for, and holds others: all of them close, and open again for
// what still fails.
func (b *breakers) regroup(layouts uint64) {
	if layouts == b.layouts {
		return
	}
	b.layouts = layouts
	for at, entry := range b.places {
		if at.partition != wholeDestination {
			b.close(entry)
		}
	}
}

// closePart forgets the breaker of a key or a row, and returns it if it was the topic's last.
func closePart[K comparable](b *breakers, entries map[K]*breaker, key K) (last *breaker) {
	entry := entries[key]
	delete(entries, key)
	b.shrunk++
	if b.parts[entry.topic].waiting--; b.parts[entry.topic].waiting > 0 {
		return nil
	}
	delete(b.parts, entry.topic)
	return entry
}

// each calls do for each breaker that rows are tried for.
func (b *breakers) each(do func(*breaker)) {
	for _, entry := range b.places {
		do(entry)
	}
	for _, entry := range b.keys {
		do(entry)
	}
	for _, entry := range b.ids {
		do(entry)
	}
}

// due returns breakers whose pause is over, with no more than max samples together, and when the
// next one's is.
func (b *breakers) due(now time.Time, most int) (due []*breaker, ids []int64, next time.Time) {
	b.each(func(entry *breaker) {
		switch {
		case entry.trying:
		case now.Before(entry.until):
			if next.IsZero() || entry.until.Before(next) {
				next = entry.until
			}
		case len(ids) == 0 || len(ids)+len(entry.samples) <= most:
			due, ids = append(due, entry), append(ids, entry.samples...)
		default:
			next = now
		}
	})
	return due, ids, next
}

// tried tells which rows of breakers were claimed, nil for none. Those of which there are none are tried again,
// and close when their rows seem to be gone.
func (b *breakers) tried(now time.Time, due []*breaker, batch source.Batch, backoff Backoff) {
	found := map[int64]bool{}
	if batch != nil {
		for _, m := range batch.Messages() {
			found[m.Sequence] = true
		}
	}
	for _, entry := range due {
		if slices.ContainsFunc(entry.samples, func(id int64) bool { return found[id] }) {
			entry.trying = true
			continue
		}
		entry.missed++
		entry.until = now.Add(backoff.pause(entry.missed))
		if entry.missed >= samplesGone {
			b.remove(entry)
		}
	}
}

// ended tells that a batch that tried breakers has ended. Those that it did not close or open again are
// tried again.
func (b *breakers) ended(now time.Time, due []*breaker, backoff Backoff) {
	for _, entry := range due {
		if entry.trying {
			entry.trying = false
			entry.until = now.Add(backoff.pause(entry.failures))
		}
	}
}

// remove forgets a breaker.
func (b *breakers) remove(entry *breaker) {
	if b.places[entry.place] == entry {
		b.close(entry)
		return
	}
	for key, other := range b.keys {
		if other == entry {
			closePart(b, b.keys, key)
			return
		}
	}
	for id, other := range b.ids {
		if other == entry {
			closePart(b, b.ids, id)
			return
		}
	}
}

// all reports whether everything is held back, and until when.
func (b *breakers) all(now time.Time) (until time.Time, held bool) {
	if b.everything == nil {
		return time.Time{}, false
	}
	if b.everything.trying {
		return now.Add(forever), true
	}
	return b.everything.until, now.Before(b.everything.until)
}
