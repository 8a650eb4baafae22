package kafka

import (
	"math"
	"slices"
	"strings"
	"sync/atomic"
)

// orderKey is what messages are ordered by.
type orderKey struct{ topic, key string }

// brokenKeys are the keys of a stream of which a message failed. It is guarded by the
// stream's mu.
type brokenKeys struct {
	// any spares everybody mu as long as there are none.
	any  atomic.Bool
	keys map[orderKey][]breach
	// resumed are breaches that have an end, in its order.
	resumed []resumption
}

// breach is what is not to be sent: the messages of a key behind position from, and
// before position to, from which on the key was resumed. Those of one key follow each
// other; the last may be endless.
type breach struct{ from, to int64 }

type resumption struct {
	key orderKey
	to  int64
}

const endless = math.MaxInt64

// add breaks a key behind a position.
func (b *brokenKeys) add(key orderKey, position int64) {
	if b.keys == nil {
		b.keys = map[orderKey][]breach{}
	}
	breaches := b.keys[key]
	for i := range breaches {
		if position < breaches[i].to {
			breaches[i].from = min(breaches[i].from, position)
			return
		}
	}
	key.topic = strings.Clone(key.topic) // or it would keep the memory of its batch
	b.keys[key] = append(breaches, breach{position, endless})
	b.any.Store(true)
}

// behind reports whether a message of the key at the position is not to be sent.
func (b *brokenKeys) behind(key orderKey, position int64) bool {
	for _, br := range b.keys[key] {
		if br.from < position && position < br.to {
			return true
		}
	}
	return false
}

// resume makes a broken key whole from a position on.
func (b *brokenKeys) resume(key orderKey, position int64) {
	for i, br := range b.keys[key] {
		if br.to == endless {
			key.topic = strings.Clone(key.topic)
			b.keys[key][i].to = position
			b.resumed = append(b.resumed, resumption{key, position})
		}
	}
}

// forget drops the breaches that end before the oldest position under way.
func (b *brokenKeys) forget(oldest int64) {
	n := 0
	for ; n < len(b.resumed) && b.resumed[n].to <= oldest; n++ {
		key := b.resumed[n].key
		left := slices.DeleteFunc(b.keys[key], func(br breach) bool { return br.to <= oldest })
		if b.keys[key] = left; len(left) == 0 {
			delete(b.keys, key)
		}
	}
	b.resumed = b.resumed[n:]
	if len(b.keys) == 0 {
		b.any.Store(false)
	}
}
