package kafka_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/inbox"
)

// document is a message that compresses well.
func document(n int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"items":[`)
	for i := range 20 {
		fmt.Fprintf(&b, `{"sku":"SKU-%06d","description":"a product with a description of usual length, in stock","quantity":%d,"currency":"EUR"},`, n*7919%1000000, i)
	}
	b.WriteString(`{}]}`)
	return b.Bytes()
}

// publishDocuments writes batches of documents to a partition, and returns the
// number of the next message.
func (s *stage) publishDocuments(partition, first, batches, size int, codec kafkago.Compression) int {
	s.t.Helper()
	n := first
	for range batches {
		var list []kafkago.Record
		for range size {
			r := s.record(n)
			r.Value = kafkago.NewBytes(document(n))
			list = append(list, r)
			n++
		}
		s.produceCompressed(partition, codec, list...)
	}
	return n
}

func heap() int {
	runtime.GC()
	runtime.GC() // the first one leaves what pools hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc >> 10) //nolint:gosec // it fits
}

// MaxBytes bounds what all partitions hold, however well it is compressed,
// and all of them are processed.
func TestMemoryIsBounded(t *testing.T) {
	const partitions, maxBytes = 8, 16 << 20
	for _, codec := range []kafkago.Compression{kafkago.Gzip, kafkago.Snappy, kafkago.Lz4, kafkago.Zstd} {
		t.Run(codec.String(), func(t *testing.T) {
			s := newStage(t, partitions, kafkago.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: "8388608"})
			n := 0
			for partition := range partitions {
				n = s.publishDocuments(partition, n, 4, 300, codec)
				n = s.publishDocuments(partition, n, 1, 6000, codec) // 15 MB
			}
			before := heap()
			var seen [partitions]atomic.Int64
			config := s.config(func(_ context.Context, _ pgx.Tx, m inbox.Message) error {
				seen[m.Source.Partition].Add(1)
				time.Sleep(100 * time.Millisecond)
				return nil
			})
			config.Logger = slog.New(slog.DiscardHandler)
			config.MaxBytes = maxBytes
			// From the middle of the large batch on.
			offsets := make([]kafkago.OffsetCommit, partitions)
			for partition := range offsets {
				offsets[partition] = kafkago.OffsetCommit{Partition: partition, Offset: int64(partition%2) * 3500}
			}
			await(t, "the coordinator takes offsets", func() bool {
				response, err := s.client.OffsetCommit(t.Context(), &kafkago.OffsetCommitRequest{GroupID: s.group, GenerationID: -1, Topics: map[string][]kafkago.OffsetCommit{s.topic: offsets}})
				return err == nil && response.Topics[s.topic][0].Error == nil
			})
			c := start(t, config)
			most := 0
			await(t, "every partition is processed", func() bool {
				most = max(most, heap()-before)
				for partition := range seen {
					if seen[partition].Load() < 5 {
						return false
					}
				}
				return true
			})
			t.Logf("%s: %d partitions hold up to %d KiB of heap, MaxBytes is %d KiB", codec, partitions, most, maxBytes>>10)
			if most > maxBytes>>10+8<<10 {
				t.Errorf("%d KiB of heap", most)
			}
			_ = c.stop()
		})
	}
}

// Partitions whose handlers are stuck hold their share, and what lies unread
// beyond it is given up for those that go on.
func TestStuckPartitionsDoNotTakeTheMemoryOfOthers(t *testing.T) {
	const partitions = 6
	s := newStage(t, partitions, kafkago.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: "8388608"})
	n := 0
	for partition := range partitions {
		n = s.publishDocuments(partition, n, 2, 1200, kafkago.Zstd)
	}
	release := make(chan struct{})
	config := s.config(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Source.Partition > 0 && m.Source.Offset == 10 {
			select {
			case <-release:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return effect(ctx, tx, m)
	})
	config.MaxBytes = 1 << 20 // one window of a decompressor at a time
	config.HandlerTimeout = 10 * time.Minute
	c := start(t, config)
	await(t, "a partition is processed while the others are stuck", func() bool {
		return s.db.Int(t, `SELECT count(*) FROM effects WHERE partition = 0`) == 2400
	})
	close(release)
	s.awaitEffects(n)
	c.mustStop()
	s.checkEffects(n)
}
