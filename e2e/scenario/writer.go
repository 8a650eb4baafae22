package scenario

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/outbox"
)

const (
	// transactionLimit bounds a transaction with a database that is away.
	transactionLimit = 30 * time.Second
	// retryPause is between a failed transaction and the next.
	retryPause = 50 * time.Millisecond
)

// writer is one of a workload's.
type writer struct {
	Workload
	stage  *Stage
	load   *Load
	random *rand.Rand
}

// fate is what becomes of a transaction.
type fate string

const (
	commits    fate = ""
	rollsBack  fate = "its transaction was rolled back"
	savepoints fate = "its savepoint was rolled back"
)

// draft is a message to write.
type draft struct {
	Row
	payload []byte
}

var errRollback = errors.New("roll back")

func (w *writer) run(ctx context.Context) {
	pause := time.Duration(float64(time.Second) * float64(w.Writers) / w.Rate)
	next := time.Now().Add(time.Duration(w.random.Float64() * float64(pause)))
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
		}
		next = next.Add(pause)
		if now := time.Now(); next.Before(now) {
			next = now
		}
		// The end of the workload does not cut a transaction short.
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), transactionLimit)
		err := w.transaction(limited)
		cancel()
		switch {
		case err == nil:
			w.load.committed.Add(1)
		case errors.Is(err, errRollback):
			w.load.rolledBack.Add(1)
		case w.Unreliable:
			w.load.failed.Add(1)
			time.Sleep(retryPause)
		default:
			w.stage.t.Errorf("writer: %v", err)
			return
		}
	}
}

// transaction is one of an application: it locks the aggregates, writes
// messages about them, some of them in a savepoint, and commits or not.
func (w *writer) transaction(ctx context.Context) error {
	outcome := commits
	switch w.random.IntN(10) {
	case 0:
		outcome = rollsBack
	case 1, 2:
		outcome = savepoints
	}
	kept := w.drafts(1 + w.random.IntN(w.Rows))
	var abandoned []draft
	if outcome == savepoints {
		abandoned = w.drafts(1 + w.random.IntN(w.Rows))
		for _, d := range abandoned {
			w.stage.Undo(d.MessageID, string(savepoints))
		}
	}
	if outcome == rollsBack {
		for _, d := range kept {
			w.stage.Undo(d.MessageID, string(rollsBack))
		}
	}
	library := w.random.IntN(2) == 0
	return pgx.BeginFunc(ctx, w.stage.Database.Pool, func(tx pgx.Tx) error {
		if w.AsyncCommit {
			if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
				return err
			}
		}
		if err := lockAggregates(ctx, tx, append(slices.Clone(kept), abandoned...)); err != nil {
			return err
		}
		if len(abandoned) > 0 {
			err := pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) error {
				if err := w.write(ctx, savepoint, abandoned, library); err != nil {
					return err
				}
				return errRollback
			})
			if !errors.Is(err, errRollback) {
				return err
			}
		}
		if err := w.write(ctx, tx, kept, library); err != nil {
			return err
		}
		if outcome == rollsBack {
			return errRollback
		}
		return nil
	})
}

// drafts makes messages of random keys.
func (w *writer) drafts(n int) []draft {
	drafts := make([]draft, n)
	topics := w.stage.Log.Topics()
	for i := range drafts {
		d := &drafts[i]
		binary.BigEndian.PutUint64(d.MessageID[:8], w.random.Uint64())
		binary.BigEndian.PutUint64(d.MessageID[8:], w.random.Uint64())
		d.Topic = topics[w.random.IntN(len(topics))]
		if w.random.IntN(100) >= w.NullKeys {
			d.Keyed, d.Key = true, "key-"+strconv.Itoa(w.random.IntN(w.Keys))
		}
		d.payload = fmt.Appendf(nil, `{"key":%q,"message":%q,"padding":%q}`, d.Key, d.MessageID, bytes.Repeat([]byte("x"), w.random.IntN(200)))
		d.Digest = Digest(d.payload)
	}
	return drafts
}

// lockAggregates locks what the keys name, in the same order in every
// transaction, so that ids of a key commit in order and nobody deadlocks.
func lockAggregates(ctx context.Context, tx pgx.Tx, drafts []draft) error {
	slices.SortFunc(drafts, func(a, b draft) int { return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Key, b.Key)) })
	batch := &pgx.Batch{}
	for i, d := range drafts {
		if !d.Keyed || (i > 0 && drafts[i-1].Keyed && drafts[i-1].Topic == d.Topic && drafts[i-1].Key == d.Key) {
			continue
		}
		batch.Queue(`INSERT INTO aggregates VALUES ($1, $2, 1) ON CONFLICT (topic, key) DO UPDATE SET sequence = aggregates.sequence + 1`, d.Topic, d.Key)
	}
	if batch.Len() == 0 {
		return nil
	}
	return tx.SendBatch(ctx, batch).Close()
}

// write inserts the messages, by the library or by plain SQL, and the truth
// about them.
func (w *writer) write(ctx context.Context, tx pgx.Tx, drafts []draft, library bool) error {
	insert := w.insert
	if library {
		insert = w.insertByLibrary
	}
	if err := insert(ctx, tx, drafts); err != nil {
		return err
	}
	batch := &pgx.Batch{}
	for _, d := range drafts {
		batch.Queue(`INSERT INTO truth (message_id, id, topic, key, digest) VALUES ($1, $2, $3, $4, $5)`, [16]byte(d.MessageID), d.ID, d.Topic, d.key(), d.Digest)
	}
	if w.Notify && !library {
		batch.Queue(`SELECT pg_notify($1, '')`, get(w.stage.Config, "outbox.table", "outbox"))
	}
	return tx.SendBatch(ctx, batch).Close()
}

func (d draft) key() *string {
	if !d.Keyed {
		return nil
	}
	return &d.Key
}

func (w *writer) insert(ctx context.Context, tx pgx.Tx, drafts []draft) error {
	batch := &pgx.Batch{}
	for i := range drafts {
		d := &drafts[i]
		batch.Queue(`INSERT INTO `+w.stage.Table+` (message_id, topic, key, type, payload) VALUES ($1, $2, $3, 'Tested', $4) RETURNING id`,
			[16]byte(d.MessageID), d.Topic, d.key(), d.payload).QueryRow(func(row pgx.Row) error { return row.Scan(&d.ID) })
	}
	return tx.SendBatch(ctx, batch).Close()
}

func (w *writer) insertByLibrary(ctx context.Context, tx pgx.Tx, drafts []draft) error {
	library := outbox.Writer{
		Schema: get(w.stage.Config, "outbox.schema", ""), Table: get(w.stage.Config, "outbox.table", ""), Notify: w.Notify,
	}
	messages := make([]outbox.Message, len(drafts))
	for i, d := range drafts {
		messages[i] = outbox.Message{ID: d.MessageID, Topic: d.Topic, Key: d.Key, Type: "Tested", Payload: d.payload}
	}
	receipts, err := library.Insert(ctx, tx, messages...)
	if err != nil {
		return err
	}
	for i, receipt := range receipts {
		drafts[i].ID = receipt.ID
	}
	return nil
}
