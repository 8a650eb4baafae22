package inbox

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/pgarray"
)

// stream is what messages have an order within.
type stream struct{ topic, key string }

func streamOf(m Message) stream { return stream{indexable(storable(m.Topic)), string(m.Key)} }

// maxIndexed is how long a text may be in an index, in bytes. PostgreSQL takes some
// 2,700 of all columns together.
const maxIndexed = 1000

// indexable is a text as an index can hold it: its hash where it is too long. No
// broker's topics are, but a Message may be of another make.
func indexable(s string) string {
	if len(s) <= maxIndexed {
		return s
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s)))
}

// order is what the order check needs to know of some messages: the distinct
// streams, sorted, with the highest sequence of each. Empty when nothing is to
// be checked.
type order struct {
	streams []stream
	highest map[stream]int64
}

func checked(m Message) bool { return m.Key != nil && m.Sequence > 0 }

func (i *Inbox) newOrder(messages ...Message) order {
	if i.Order == OrderOff {
		return order{}
	}
	o := order{highest: make(map[stream]int64, len(messages))}
	for _, m := range messages {
		if !checked(m) {
			continue
		}
		s := streamOf(m)
		if _, known := o.highest[s]; !known {
			o.streams = append(o.streams, s)
		}
		o.highest[s] = max(o.highest[s], m.Sequence)
	}
	slices.SortFunc(o.streams, compareStreams)
	return o
}

func compareStreams(a, b stream) int {
	return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.key, b.key))
}

// statement is what raises the sequences, with its arguments.
func (o order) statement(i *Inbox) (sql string, arguments []any) {
	if len(o.streams) == 1 {
		s := o.streams[0]
		return fmt.Sprintf(orderSQL, i.identifier("_order")), []any{i.Consumer, s.topic, []byte(s.key), o.highest[s]}
	}
	var topics, keys, sequences pgarray.Array
	for _, s := range o.streams {
		topics.Text(s.topic)
		keys.Bytes([]byte(s.key))
		sequences.Integer(o.highest[s])
	}
	return fmt.Sprintf(orderBatchSQL, i.identifier("_order")), []any{i.Consumer, topics.Literal(), keys.Literal(), sequences.Literal()}
}

// queueOrder queues the check, which sets previous to the streams' sequences
// before this transaction, 0 for none.
func (i *Inbox) queueOrder(batch *pgx.Batch, o order, previous *[]int64) {
	if len(o.streams) == 0 {
		return
	}
	sql, arguments := o.statement(i)
	batch.Queue(sql, arguments...).Query(func(rows pgx.Rows) (err error) {
		if *previous, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
			return err
		}
		return i.checkOrder(o, *previous)
	})
}

// checkOrder reports an answer that is not complete.
func (i *Inbox) checkOrder(o order, previous []int64) error {
	if len(previous) == len(o.streams) {
		return nil
	}
	return fmt.Errorf("%d keys became %d rows of %s: a trigger or rule of the table interferes", len(o.streams), len(previous), i.identifier("_order"))
}

// late reports which of the messages come after a later one of their stream:
// one that was processed before this transaction (previous, from queueOrder),
// or stands before it in messages. Those that are not fresh are duplicates,
// which cannot be late, but others can be later than they.
func (o order) late(messages []Message, fresh []bool, previous []int64) []bool {
	late := make([]bool, len(messages))
	if len(o.streams) == 0 {
		return late
	}
	newest := make(map[stream]int64, len(o.streams))
	for n, s := range o.streams {
		newest[s] = previous[n]
	}
	for n, m := range messages {
		if !checked(m) {
			continue
		}
		s := streamOf(m)
		late[n] = fresh[n] && m.Sequence <= newest[s]
		newest[s] = max(newest[s], m.Sequence)
	}
	return late
}

// verdict is the result of a message that was not seen before.
func (i *Inbox) verdict(late bool) Result {
	switch {
	case !late:
		return Processed
	case i.Order == OrderRefuse:
		return Stale
	default:
		return Late
	}
}
