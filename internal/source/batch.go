package source

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
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
	// Settle records those messages as published whose index published reports
	// true for, gives the others back, and ends the batch, whatever it returns.
	// After an error all of them may be claimed again, at worst as duplicates.
	Settle(ctx context.Context, published func(i int) bool) error
	// Release gives all messages back and ends the batch.
	Release()
}

// rowBatch is the Claimer's Batch: locked rows of an open transaction.
type rowBatch struct {
	messages []sinks.Message

	claimer *Claimer
	conn    *pgxpool.Conn
	buffer  []byte
	headers []sinks.Header
	// leftOut are the keys with a row that somebody else has locked, and
	// leftOutIDs such rows without a key.
	leftOut    map[Key]struct{}
	leftOutIDs []int64
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

// Messages implements Batch.
func (b *rowBatch) Messages() []sinks.Message { return b.messages }

// Full implements Batch.
func (b *rowBatch) Full() bool { return b.full }

// Settle implements Batch: it marks or deletes, and commits, in one round trip.
func (b *rowBatch) Settle(ctx context.Context, published func(i int) bool) error {
	defer b.end()
	b.ids = b.ids[:0]
	for i := range b.messages {
		if published(i) {
			b.ids = append(b.ids, b.messages[i].Sequence)
		}
	}
	if len(b.ids) == 0 {
		return nil
	}
	batch := &pgconn.Batch{}
	preparedOn(b.conn.Conn().PgConn()).add(batch, b.claimer.settle, [][]byte{idArray(b.ids)}, nil)
	batch.ExecParams(`COMMIT`, nil, nil, nil, nil)
	results, err := b.conn.Conn().PgConn().ExecBatch(ctx, batch).ReadAll()
	if err == nil && results[1].CommandTag.String() != "COMMIT" {
		err = fmt.Errorf("the server answered %s to COMMIT", results[1].CommandTag)
	}
	if pgconn.Timeout(err) {
		b.claimer.pool.Reset() // see Claim
	}
	if err != nil {
		return fmt.Errorf("mark %d rows of %s: %w", len(b.ids), b.claimer.statements.outbox, err)
	}
	// They are locked, so only a trigger, a rule or a policy can be in the way.
	if n := results[0].CommandTag.RowsAffected(); n != int64(len(b.ids)) {
		return fmt.Errorf("%d of %d published rows of %s could be marked: a trigger, a rule or row level security hinders the others", n, len(b.ids), b.claimer.statements.outbox)
	}
	return nil
}

// Release implements Batch.
func (b *rowBatch) Release() { b.end() }

func (b *rowBatch) end() {
	release(b.conn)
	b.recycle()
}

// recycle empties the batch for the next claim.
func (b *rowBatch) recycle() {
	claimer := b.claimer
	if cap(b.buffer) > keepBuffer {
		b.buffer = nil
	}
	clear(b.messages) // drops what their slices point to
	clear(b.headers)
	*b = rowBatch{messages: b.messages[:0], buffer: b.buffer[:0], headers: b.headers[:0], reached: b.reached[:0], ids: b.ids[:0]}
	claimer.batches.Put(b)
}
