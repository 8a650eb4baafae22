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
	// Full reports whether more messages were waiting than the batch could take.
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
	// leftOut are the keys with a row that somebody else has locked.
	leftOut map[Key]struct{}
	// full: there is more where this came from.
	full bool
	// inserted and flushed are log positions: of the snapshot's end, and of the
	// disk.
	inserted, flushed uint64
	// epoch is that of the floors when the batch was claimed.
	epoch uint64
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
		b.forget()
		return nil
	}
	batch := &pgconn.Batch{}
	batch.ExecParams(b.claimer.settle, [][]byte{idArray(b.ids)}, nil, nil, nil)
	batch.ExecParams(`COMMIT`, nil, nil, nil, nil)
	results, err := b.conn.Conn().PgConn().ExecBatch(ctx, batch).ReadAll()
	if err == nil && results[1].CommandTag.String() != "COMMIT" {
		err = fmt.Errorf("the server answered %s to COMMIT", results[1].CommandTag)
	}
	if err != nil {
		b.forget()
		return fmt.Errorf("mark %d rows of %s: %w", len(b.ids), b.claimer.statements.outbox, err)
	}
	if len(b.ids) < len(b.messages) {
		b.forget() // the others are pending, below where the batch ended
	} else {
		b.reach()
	}
	return nil
}

// Release implements Batch.
func (b *rowBatch) Release() {
	b.forget()
	b.end()
}

func (b *rowBatch) end() {
	release(b.conn)
	b.recycle()
}

// reach raises the floors of the batch's shards, all of whose rows were
// published.
func (b *rowBatch) reach() {
	if len(b.leftOut) > 0 {
		return // rows were passed over
	}
	b.claimer.floorsLock.Lock()
	defer b.claimer.floorsLock.Unlock()
	for _, r := range b.reached {
		b.claimer.floors.reach(b.epoch, r.shard, r.id)
	}
}

// forget makes the next claim look at the whole table.
func (b *rowBatch) forget() {
	b.claimer.floorsLock.Lock()
	defer b.claimer.floorsLock.Unlock()
	b.claimer.floors.reset()
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
