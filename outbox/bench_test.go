package outbox_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/outboxrelay/relay/outbox"
)

// BenchmarkInsert measures Insert alone; each batch's transaction is rolled
// back, so that the table stays small.
func BenchmarkInsert(b *testing.B) {
	url := database(b, defaultTarget)
	for _, bench := range []struct {
		name     string
		messages []outbox.Message
	}{
		{"1", []outbox.Message{{Topic: "orders", Key: "order-1", Type: "OrderPlaced", Payload: bytes.Repeat([]byte("x"), 200)}}},
		{"1000", make1000()},
	} {
		b.Run(bench.name, func(b *testing.B) {
			tx, err := connect(b, url).Begin(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := outbox.Insert(b.Context(), tx, bench.messages...); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N*len(bench.messages))/b.Elapsed().Seconds(), "messages/s")
			if err := tx.Rollback(context.Background()); err != nil {
				b.Fatal(err)
			}
		})
		b.Run("sql/"+bench.name, func(b *testing.B) {
			tx, err := openSQL(b, url).BeginTx(b.Context(), nil)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := outbox.InsertSQL(b.Context(), tx, bench.messages...); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N*len(bench.messages))/b.Elapsed().Seconds(), "messages/s")
			_ = tx.Rollback()
		})
	}
}
