package inbox

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/pgarray"
)

// ProcessBatch is Process for many messages in one transaction: all ids are
// claimed in one round trip, together with the BEGIN where db allows, and the
// handler gets those messages that are to be processed, in their order; it is
// not called when there are none. A message that is in the batch twice is
// processed once. The results are the messages', in their order.
//
// It is all or nothing: after an error no message of the batch is processed.
// To find the message that is to blame, process them one by one. When a
// message has no id the error is ErrNoID and the database has not been asked;
// Identify says which.
//
// Batches claim ids, and keys for the order check, in one and the same order,
// so that two of them never deadlock by their claims, whatever they share.
// Order matters inside handlers too: sort what you lock.
func (i *Inbox) ProcessBatch(ctx context.Context, db Beginner, messages []Message, handler BatchHandler) (results []Result, err error) {
	prepared, err := i.prepareAll(ctx, messages)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	ctx, o := i.observe(ctx, true, prepared...)
	defer func() { o.end(err, results...) }()
	run := func() (err error) {
		results, err = i.processBatch(ctx, db, o, prepared, handler)
		return err
	}
	if _, callers := db.(pgx.Tx); callers {
		err = run()
	} else {
		err = i.retry(ctx, o, run)
	}
	return results, err
}

func (i *Inbox) processBatch(ctx context.Context, db Beginner, o *observation, messages []Message, handler BatchHandler) ([]Result, error) {
	var claimed map[ID]bool
	var previous []int64
	order := i.newOrder(messages...)
	tx, err := begin(ctx, db, func(batch *pgx.Batch) {
		batch.Queue(fmt.Sprintf(claimBatchSQL, i.identifier("")), i.claimBatchArguments(messages)...).Query(func(rows pgx.Rows) error {
			texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err == nil {
				claimed, err = idsOf(texts)
			}
			return err
		})
		i.queueOrder(batch, order, &previous)
	})
	if err != nil {
		return nil, i.explain("claim in", err)
	}
	committed := false
	defer func() { // also when the handler panics
		if !committed {
			rollback(ctx, tx)
		}
	}()
	results, fresh := i.sift(messages, claimed, order, previous)
	if len(claimed) == 0 {
		committed = i.release(ctx, db, tx, order)
		return results, nil
	}
	if len(fresh) > 0 {
		if err := o.handle(func() error { return handler(ctx, tx, fresh) }); err != nil {
			return nil, err
		}
	}
	if err := commit(ctx, tx); err != nil {
		return nil, i.explain("commit with claims in", err)
	}
	committed = true
	return results, nil
}

// sift returns the results of a batch of which the ids in claimed are new, if its
// transaction commits, and the messages for the handler.
func (i *Inbox) sift(messages []Message, claimed map[ID]bool, order order, previous []int64) (results []Result, fresh []Message) {
	isFresh := make([]bool, len(messages))
	seen := make(map[ID]bool, len(claimed))
	for n, m := range messages {
		isFresh[n] = claimed[m.ID] && !seen[m.ID] // the first one of the batch is it
		seen[m.ID] = true
		if !m.former.IsZero() {
			isFresh[n] = isFresh[n] && claimed[m.former] && !seen[m.former]
			seen[m.former] = true
		}
	}
	results = make([]Result, len(messages))
	fresh = make([]Message, 0, len(claimed))
	for n, late := range order.late(messages, isFresh, previous) {
		results[n] = Duplicate
		if isFresh[n] {
			results[n] = i.verdict(late)
		}
		if results[n].Ran() {
			fresh = append(fresh, messages[n])
		}
	}
	return results, fresh
}

// prepareAll is prepare for a batch.
func (i *Inbox) prepareAll(ctx context.Context, messages []Message) ([]Message, error) {
	prepared := make([]Message, len(messages))
	for n, message := range messages {
		var err error
		if prepared[n], err = i.prepare(ctx, message); err != nil {
			return nil, fmt.Errorf("message %d of the batch: %w", n, err)
		}
	}
	return prepared, nil
}

// idsOf reads what claimBatchSQL returns.
func idsOf(texts []string) (map[ID]bool, error) {
	ids := make(map[ID]bool, len(texts))
	for _, text := range texts {
		id, err := ParseID(text)
		if err != nil {
			return nil, err
		}
		ids[id] = true
	}
	return ids, nil
}

// claimBatchArguments are claimBatchSQL's: each id once, in ascending order.
func (i *Inbox) claimBatchArguments(messages []Message) []any {
	type claim struct {
		id      ID
		message *Message
	}
	sorted := make([]claim, 0, len(messages))
	for n := range messages {
		m := &messages[n]
		sorted = append(sorted, claim{m.ID, m})
		if !m.former.IsZero() {
			sorted = append(sorted, claim{m.former, m})
		}
	}
	byID := func(a, b claim) int { return bytes.Compare(a.id[:], b.id[:]) }
	slices.SortStableFunc(sorted, byID)
	sorted = slices.CompactFunc(sorted, func(a, b claim) bool { return a.id == b.id })
	var ids, receivedAt, sources, partitions, offsets pgarray.Array
	for _, claim := range sorted {
		m := claim.message
		ids.UUID(claim.id)
		if m.ReceivedAt.IsZero() {
			receivedAt.Null()
		} else {
			receivedAt.Time(m.ReceivedAt)
		}
		if m.Source.Name == "" {
			sources.Null()
		} else {
			sources.Text(storable(m.Source.Name))
		}
		if m.Source.Name == "" || !m.Source.HasOffset {
			partitions.Null()
			offsets.Null()
		} else {
			partitions.Integer(int64(m.Source.Partition))
			offsets.Integer(m.Source.Offset)
		}
	}
	return []any{i.Consumer, ids.Literal(), receivedAt.Literal(), sources.Literal(), partitions.Literal(), offsets.Literal()}
}
