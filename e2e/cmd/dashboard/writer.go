package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/outbox"
)

// tick is how often the writer commits.
const tick = 50 * time.Millisecond

// rates are the messages per second of each topic.
var rates = map[string]float64{orders: 120, payments: 70, notifications: 40}

// writer is the application: it inserts messages all the time, but while the
// database is away.
type writer struct {
	pool   *pgxpool.Pool
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func startWriter(ctx context.Context, database string) (*writer, error) {
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &writer{pool: pool, cancel: cancel}
	w.done.Go(func() { w.run(ctx) })
	return w, nil
}

func (w *writer) stop() {
	w.cancel()
	w.done.Wait()
	w.pool.Close()
}

func (w *writer) run(ctx context.Context) {
	for {
		var messages []outbox.Message
		for topic, rate := range rates {
			due := rate * tick.Seconds() * (0.5 + rand.Float64())
			n := int(due)
			if rand.Float64() < due-float64(n) {
				n++
			}
			for range n {
				messages = append(messages, outbox.Message{
					Topic: topic, Key: fmt.Sprintf("customer-%d", 10+rand.IntN(2000)), Type: "Happened", JSON: map[string]int{"total": rand.IntN(10_000)},
				})
			}
		}
		pause := tick
		if err := w.insert(ctx, messages...); err != nil {
			pause = time.Second // as an application without its database
		}
		if wait(ctx, pause) != nil {
			return
		}
	}
}

func (w *writer) insert(ctx context.Context, messages ...outbox.Message) error {
	if len(messages) == 0 {
		return nil
	}
	return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		_, err := outbox.Insert(ctx, tx, messages...)
		return err
	})
}
