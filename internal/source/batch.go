package source

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/sinks"
)

// keepBuffer is the largest buffer that a batch keeps for the next one.
const keepBuffer = 2 << 20

// Batch is a claim of any source: messages that nobody else publishes until it
// is settled or released, which the caller must do, exactly one of them and
// once.
type Batch interface {
	// Messages are never none, in the order in which they are to be published.
	// The caller may change their destinations; their bytes and header strings
	// live until the batch is settled or released.
	Messages() []sinks.Message
	// Full reports whether more messages are likely to wait than the batch could
	// take: claiming again at once is worth it.
	Full() bool
	// Refused returns why message i must not be sent at all, nil for most: it is
	// to be treated as one that the broker refused.
	Refused(i int) error
	// Failures returns what is remembered of message i from earlier claims.
	Failures(i int) Failures
	// Settle records what became of the messages, one outcome for each or nil
	// when all were published, and ends the batch, whatever it returns. Of one
	// key at most one message may be refused, and none behind it published.
	// After an UnrecordedError only those are handed out again that were not published, after an
	// UnsettledError also others, but not by this source.
	Settle(ctx context.Context, outcomes []Outcome) error
	// Release gives all messages back and ends the batch.
	Release()
}

// rowBatch is the Claimer's Batch: locked rows of an open transaction.
type rowBatch struct {
	messages []sinks.Message

	claimer *Claimer
	conn    *pgxpool.Conn
	// statements are for the columns that the table had when it was read.
	statements statements
	buffer     []byte
	headers    []sinks.Header
	// leftOut are the keys whose rows are left out from some row on, and lockedRows the
	// rows that somebody else has locked.
	leftOut    map[Key]struct{}
	lockedRows []lockedID
	// refused are messages that cannot be sent, by their index.
	refused map[int]error
	// held is what a batch of held back messages has besides, nil for others.
	held *heldBatch
	// exclude is what the caller leaves out, and heldBack how many rows were read that are.
	exclude  Exclusion
	heldBack int
	// read counts the rows, and bytes their size.
	read, bytes int
	// shards is how many the batch has locked.
	shards int
	// delayed are the shards of delayed rows in the batch.
	delayed []int
	// full: there is more where this came from.
	full bool
	// inserted and flushed are log positions: of the snapshot's end, and of the
	// disk.
	inserted, flushed uint64
	// reached is the last id of each shard in the batch.
	reached []position
	ids     []int64
}

// position is an id within a shard; shard allShards means in every one.
type position struct {
	shard int
	id    int64
}

const allShards = -1

// lockedID is a row that somebody else has locked.
type lockedID struct {
	id    int64
	key   Key
	keyed bool
}

// Messages implements Batch.
func (b *rowBatch) Messages() []sinks.Message { return b.messages }

// Full implements Batch.
func (b *rowBatch) Full() bool { return b.full }

// Refused implements Batch.
func (b *rowBatch) Refused(i int) error { return b.refused[i] }

// Failures implements Batch.
func (b *rowBatch) Failures(i int) Failures {
	if b.held == nil {
		return Failures{}
	}
	return b.held.failures(&b.messages[i])
}

// Release implements Batch.
func (b *rowBatch) Release() {
	b.forgetDelayed()
	b.end()
}

func (b *rowBatch) end() {
	release(b.conn)
	b.claimer.share.took(-b.shards)
	b.recycle()
}

// forgetDelayed makes the batch's delayed rows be looked for again, before anybody else can have its shards.
func (b *rowBatch) forgetDelayed() {
	for _, shard := range b.delayed {
		b.claimer.delayed.forget(shard)
	}
	b.delayed = b.delayed[:0]
}

// recycle empties the batch for the next claim.
func (b *rowBatch) recycle() {
	claimer := b.claimer
	if cap(b.buffer) > keepBuffer {
		b.buffer = nil
	}
	clear(b.messages) // drops what their slices point to
	clear(b.headers)
	*b = rowBatch{messages: b.messages[:0], buffer: b.buffer[:0], headers: b.headers[:0], reached: b.reached[:0], ids: b.ids[:0], delayed: b.delayed[:0]}
	claimer.batches.Put(b)
}
