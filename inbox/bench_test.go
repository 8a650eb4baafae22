package inbox_test

import (
	"context"
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/inbox"
)

var benchSequence atomic.Int64

// benchMessage is one as the relay sends them: its id is a UUID of version 7,
// so that ids ascend.
func benchMessage() inbox.Message {
	m := newMessage()
	n := benchSequence.Add(1)
	binary.BigEndian.PutUint64(m.ID[:], uint64(time.Now().UnixMilli())<<16|0x7000)
	m.Key = binary.BigEndian.AppendUint64(nil, uint64(n%1000))
	m.Sequence = n
	m.Source.Offset = n
	return m
}

func benchPool(b *testing.B) *pgxpool.Pool {
	return newPool(b, newDatabase(b).URL, func(c *pgxpool.Config) { c.MaxConns = 4 })
}

// BenchmarkProcess compares, in one run, a transaction with one statement and
// the same within Process.
func BenchmarkProcess(b *testing.B) {
	pool := benchPool(b)
	for _, bench := range []struct {
		name string
		one  func(ctx context.Context) error
	}{
		{"the handler's own transaction", func(ctx context.Context) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return apply(ctx, tx, benchMessage()) })
		}},
		{"Process", func(ctx context.Context) error {
			_, err := (&inbox.Inbox{Consumer: "shipping"}).Process(ctx, pool, benchMessage(), apply)
			return err
		}},
		{"Process with the order check", func(ctx context.Context) error {
			_, err := (&inbox.Inbox{Consumer: "ordered", Order: inbox.OrderReport}).Process(ctx, pool, benchMessage(), apply)
			return err
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := bench.one(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

// BenchmarkProcessBatch claims batches of 100 with a handler that does nothing,
// on four connections.
func BenchmarkProcessBatch(b *testing.B) {
	const size = 100
	nothing := func(context.Context, pgx.Tx, []inbox.Message) error { return nil }
	for _, bench := range []struct {
		name  string
		order inbox.OrderCheck
	}{{"claims", inbox.OrderOff}, {"claims with the order check", inbox.OrderReport}} {
		b.Run(bench.name, func(b *testing.B) {
			pool := benchPool(b)
			box := &inbox.Inbox{Consumer: "shipping", Order: bench.order}
			b.SetParallelism(2)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				messages := make([]inbox.Message, size)
				for pb.Next() {
					for i := range messages {
						messages[i] = benchMessage()
					}
					if _, err := box.ProcessBatch(context.Background(), pool, messages, nothing); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "ids/s")
		})
	}
}
