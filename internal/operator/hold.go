package operator

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/source"
)

// sequenceKey is what an entry holds back: a key of a topic.
type sequenceKey struct{ topic, key string }

// heldEntry is an entry that is there already.
type heldEntry struct {
	id    int64
	topic string
	key   *string
}

// hold makes the messages, which are in ascending id, the heads of their keys:
// each key gets an entry that names its lowest message, or the entry that it has
// is made to name it. A relay then publishes that message first, and after it
// what is pending of the key, in order. Rows that are put back lie below the ids
// up to which relays look no more; they find them by these entries. A message
// without a key has an entry of its own, and so has every message where the
// order is not by key: in a total order the lowest entry holds back all else.
func (o *Operator) hold(ctx context.Context, tx pgx.Tx, revived []Revived) error {
	byKeys := o.options.Ordering == source.OrderKey
	heads := headsOf(revived, byKeys)
	topics, keys, ids := make([]string, len(heads)), make([]*string, len(heads)), make([]int64, len(heads))
	for i, h := range heads {
		topics[i], keys[i], ids[i] = h.Topic, h.Key, h.ID
	}
	held, err := query(ctx, tx, func(row pgx.CollectableRow) (e heldEntry, err error) {
		return e, row.Scan(&e.id, &e.topic, &e.key)
	}, o.statements.expand(lockEntriesSQL), topics, keys, ids)
	if err != nil {
		return err
	}
	byKey, byID := map[sequenceKey]int64{}, map[int64]bool{}
	for _, e := range held {
		byID[e.id] = true
		if e.key == nil || !byKeys {
			continue
		}
		key := sequenceKey{e.topic, *e.key}
		if lowest, ok := byKey[key]; !ok || e.id < lowest {
			byKey[key] = e.id
		}
	}
	var made, moved []*Revived
	var entries []int64 // of moved
	for _, h := range heads {
		entry, ok := int64(0), false
		if byID[h.ID] { // a skip left it
			entry, ok = h.ID, true
		} else if h.Key != nil && byKeys {
			entry, ok = byKey[sequenceKey{h.Topic, *h.Key}]
		}
		switch {
		case !ok:
			made = append(made, h)
		case h.ID <= entry:
			moved, entries = append(moved, h), append(entries, entry)
		default: // it waits in its place behind the entry's message
		}
	}
	if len(moved) > 0 {
		c := columnsOf(moved)
		if _, err := tx.Exec(ctx, o.statements.expand(headEntriesSQL), exec, entries, c.ids, c.messages, c.topics, c.keys, c.reasons, c.errors, c.first, c.last); err != nil {
			return err
		}
	}
	if len(made) > 0 {
		c := columnsOf(made)
		if _, err := tx.Exec(ctx, o.statements.expand(makeEntriesSQL), exec, c.ids, c.messages, c.topics, c.keys, c.reasons, c.errors, c.first, c.last); err != nil {
			return err
		}
	}
	return nil
}

// headsOf returns the first message of each key, and all without a key; all
// there are, unless byKeys.
func headsOf(revived []Revived, byKeys bool) []*Revived {
	var heads []*Revived
	seen := map[sequenceKey]bool{}
	for i := range revived {
		r := &revived[i]
		if r.Key != nil && byKeys {
			key := sequenceKey{r.Topic, *r.Key}
			if seen[key] {
				continue
			}
			seen[key] = true
		}
		heads = append(heads, r)
	}
	return heads
}

// columns are the messages of entries as parameters for unnest.
type columns struct {
	ids                               []int64
	messages, topics, reasons, errors []string
	keys                              []*string
	first, last                       []time.Time
}

func columnsOf(messages []*Revived) (c columns) {
	for _, m := range messages {
		c.ids, c.messages = append(c.ids, m.ID), append(c.messages, m.MessageID.String())
		c.topics, c.keys = append(c.topics, m.Topic), append(c.keys, m.Key)
		c.reasons, c.errors = append(c.reasons, m.reason), append(c.errors, m.error)
		c.first, c.last = append(c.first, m.firstFailedAt), append(c.last, m.lastFailedAt)
	}
	return c
}
