package kafka

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/outboxrelay/relay/sinks"
)

// created is the created_at of test messages.
var created = time.Date(2026, 2, 3, 4, 5, 6, 789012000, time.UTC)

func testMessage(sequence int64, key, payload []byte, headers ...sinks.Header) sinks.Message {
	return sinks.Message{
		ID:       [16]byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0x4d, 0xef, 0x81, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, byte(sequence)},
		Sequence: sequence, Topic: "orders", Destination: "orders", Key: key, Type: "OrderPlaced",
		Payload: payload, ContentType: "application/json", Headers: headers, CreatedAt: created,
	}
}

// decoded is a record as kafka-go reads it.
type decoded struct {
	key, value []byte
	headers    []string
}

func decode(t *testing.T, wire []byte) ([]decoded, *protocol.RecordBatch) {
	t.Helper()
	var set protocol.RecordSet
	if _, err := set.ReadFrom(bytes.NewReader(wire)); err != nil {
		t.Fatalf("kafka-go cannot read the batch: %v", err)
	}
	var records []decoded
	stream := set.Records.(*protocol.RecordStream)
	batch := stream.Records[0].(*protocol.RecordBatch)
	for {
		r, err := batch.ReadRecord()
		if err != nil {
			return records, batch
		}
		var d decoded
		d.key = readAll(t, r.Key)
		d.value = readAll(t, r.Value)
		for _, h := range r.Headers {
			d.headers = append(d.headers, h.Key+"="+string(h.Value))
		}
		records = append(records, d)
	}
}

func readAll(t *testing.T, b protocol.Bytes) []byte {
	t.Helper()
	if b == nil {
		return nil
	}
	all, err := protocol.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestBatchRoundTrip(t *testing.T) {
	// Sizes around every change of a length's own length.
	messages := []sinks.Message{
		testMessage(1, []byte("k"), []byte("v")),
		testMessage(2, nil, nil),
		testMessage(3, []byte{}, []byte{}),
		testMessage(4, bytes.Repeat([]byte("k"), 63), bytes.Repeat([]byte("v"), 64)),
		testMessage(5, []byte("k"), bytes.Repeat([]byte("v"), 7990), sinks.Header{Name: "a", Value: ""}),
		testMessage(6, []byte("k"), bytes.Repeat([]byte("v"), 8192)),
		testMessage(7, []byte("k"), bytes.Repeat([]byte("v"), 900_000)),
	}
	for n := range 300 {
		messages = append(messages, testMessage(int64(n), []byte("k"), bytes.Repeat([]byte("x"), n)))
	}
	for _, codec := range []compress.Compression{compress.None, compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd} {
		t.Run(codec.String(), func(t *testing.T) {
			b := recordBatch{codec: codec}
			for range 2 { // the second time in used memory
				b.begin()
				for i := range messages {
					b.add(&messages[i])
				}
				if err := b.finish(created); err != nil {
					t.Fatal(err)
				}
				b.stamp(producer{id: 77, epoch: 3}, 12)
			}
			if got := crc32.Checksum(b.wire[atAttributes:], castagnoli); got != binary.BigEndian.Uint32(b.wire[atChecksum:]) {
				t.Error("wrong checksum")
			}
			records, batch := decode(t, b.wire)
			if batch.ProducerID != 77 || batch.ProducerEpoch != 3 || batch.BaseSequence != 12 {
				t.Errorf("producer %d, epoch %d, sequence %d", batch.ProducerID, batch.ProducerEpoch, batch.BaseSequence)
			}
			if len(records) != len(messages) {
				t.Fatalf("%d records, want %d", len(records), len(messages))
			}
			for i, r := range records {
				m := messages[i]
				if !bytes.Equal(r.key, m.Key) || (r.key == nil) != (m.Key == nil) {
					t.Errorf("record %d: key %q, want %q", i, r.key, m.Key)
				}
				if !bytes.Equal(r.value, m.Payload) || (r.value == nil) != (m.Payload == nil) {
					t.Errorf("record %d: %d bytes, want %d", i, len(r.value), len(m.Payload))
				}
				if want := fmt.Sprintf("message-sequence=%d", m.Sequence); r.headers[2] != want {
					t.Errorf("record %d: %s, want %s", i, r.headers[2], want)
				}
			}
		})
	}
}

// TestRecordsAreCanonical compares with what kafka-go writes for the same
// records, byte for byte.
func TestRecordsAreCanonical(t *testing.T) {
	b := recordBatch{envelope: envelope{style: sinks.StyleDebezium}}
	b.begin()
	var records []protocol.Record
	for n := range 200 {
		m := testMessage(int64(n), []byte("key"), bytes.Repeat([]byte("x"), n*50), sinks.Header{Name: "h", Value: strings.Repeat("v", n)})
		b.add(&m)
		records = append(records, protocol.Record{
			Time: created, Key: protocol.NewBytes(m.Key), Value: protocol.NewBytes(m.Payload),
			Headers: []protocol.Header{
				{Key: "id", Value: []byte(fmt.Sprintf("01234567-89ab-4def-8123-456789abcd%02x", n))},
				{Key: "eventType", Value: []byte("OrderPlaced")},
				{Key: "h", Value: []byte(m.Headers[0].Value)},
			},
		})
	}
	if err := b.finish(created); err != nil {
		t.Fatal(err)
	}
	b.stamp(noProducer, -1)
	var want bytes.Buffer
	set := protocol.RecordSet{Version: 2, Records: protocol.NewRecordReader(records...)}
	if _, err := set.WriteTo(&want); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.wire, want.Bytes()) {
		t.Errorf("the batch of %d bytes differs from kafka-go's of %d bytes", len(b.wire), want.Len())
	}
}

func TestBatchUndo(t *testing.T) {
	first, second := testMessage(1, []byte("a"), []byte("1")), testMessage(2, []byte("a"), []byte("2"))
	b := recordBatch{}
	b.begin()
	b.add(&first)
	b.undo(b.add(&second))
	if err := b.finish(created); err != nil {
		t.Fatal(err)
	}
	b.stamp(noProducer, -1)
	if records, _ := decode(t, b.wire); len(records) != 1 || string(records[0].value) != "1" {
		t.Errorf("records %+v, want the first only", records)
	}
}

func TestHeaders(t *testing.T) {
	const id, at = "01234567-89ab-4def-8123-456789abcd09", "2026-02-03T04:05:06.789012Z"
	user := []sinks.Header{
		{Name: "traceparent", Value: "00-aa-bb-01"},
		{Name: "message-id", Value: "user's"}, {Name: "ce_id", Value: "user's"}, {Name: "id", Value: "user's"},
		{Name: "message-replayed", Value: "true"},
	}
	for _, test := range []struct {
		name   string
		style  sinks.Style
		change func(*sinks.Message)
		want   []string
	}{
		{"plain", sinks.StylePlain, nil, []string{
			"message-id=" + id, "message-type=OrderPlaced", "message-sequence=9", "message-time=" + at, "content-type=application/json",
			"traceparent=00-aa-bb-01", "ce_id=user's", "id=user's",
		}},
		{"cloudevents", sinks.StyleCloudEvents, nil, []string{
			"ce_specversion=1.0", "ce_id=" + id, "ce_type=OrderPlaced", "ce_source=/outbox", "ce_time=" + at, "ce_subject=order-1", "content-type=application/json",
			"traceparent=00-aa-bb-01", "message-id=user's", "id=user's",
		}},
		{"cloudevents without key and type", sinks.StyleCloudEvents, func(m *sinks.Message) { m.Key, m.Type = nil, "" }, []string{
			"ce_specversion=1.0", "ce_id=" + id, "ce_type=orders", "ce_source=/outbox", "ce_time=" + at, "content-type=application/json",
			"traceparent=00-aa-bb-01", "message-id=user's", "id=user's",
		}},
		{"plain, of minus infinity", sinks.StylePlain, func(m *sinks.Message) { m.CreatedAt, m.Headers = time.Time{}, nil }, []string{
			"message-id=" + id, "message-type=OrderPlaced", "message-sequence=9", "content-type=application/json",
		}},
		{"cloudevents, of the year 10000", sinks.StyleCloudEvents, func(m *sinks.Message) {
			m.CreatedAt, m.Headers = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), nil
		}, []string{
			"ce_specversion=1.0", "ce_id=" + id, "ce_type=OrderPlaced", "ce_source=/outbox", "ce_subject=order-1", "content-type=application/json",
		}},
		{"debezium, of the year 0", sinks.StyleDebezium, func(m *sinks.Message) { m.CreatedAt, m.Headers = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC), nil }, []string{
			"id=" + id, "eventType=OrderPlaced",
		}},
		{"debezium", sinks.StyleDebezium, nil, []string{
			"id=" + id, "eventType=OrderPlaced", "traceparent=00-aa-bb-01", "message-id=user's", "ce_id=user's",
		}},
		{"replayed, in another zone", sinks.StylePlain, func(m *sinks.Message) {
			m.Replayed, m.Headers, m.CreatedAt = true, nil, m.CreatedAt.In(time.FixedZone("", 3600))
		}, []string{
			"message-id=" + id, "message-type=OrderPlaced", "message-sequence=9", "message-time=" + at, "content-type=application/json", "message-replayed=true",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e, err := newEnvelope(sinks.Envelope{Style: test.style, Source: "/outbox"})
			if err != nil {
				t.Fatal(err)
			}
			m := testMessage(9, []byte("order-1"), []byte("{}"), user...)
			if test.change != nil {
				test.change(&m)
			}
			b := recordBatch{envelope: e}
			b.begin()
			b.add(&m)
			if err := b.finish(created); err != nil {
				t.Fatal(err)
			}
			b.stamp(noProducer, -1)
			records, _ := decode(t, b.wire)
			if got, want := strings.Join(records[0].headers, "\n"), strings.Join(test.want, "\n"); got != want {
				t.Errorf("headers\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestTimes(t *testing.T) {
	var c clock
	base := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	for _, at := range []time.Time{
		base, base.Add(1), base.Add(120_000_000), base.Add(123_456_000), base.Add(999_999_999), base.Add(time.Second), base,
		base.In(time.FixedZone("", 3600)), base.AddDate(-2500, 0, 0), base.AddDate(8100, 0, 0), time.Unix(0, 0), time.Unix(-1, 5), {},
	} {
		if got, want := string(c.append(nil, at)[1:]), at.UTC().Format(time.RFC3339Nano); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestPartition holds the vectors of Apache Kafka's own UtilsTest.testMurmur2.
func TestPartition(t *testing.T) {
	for key, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("murmur2(%q) = %d, Java has %d", key, got, want)
		}
		if got, want := partitionOf([]byte(key), 7), (want&0x7fffffff)%7; got != want {
			t.Errorf("partition of %q is %d of 7, Java has %d", key, got, want)
		}
	}
	if got := partitionOf([]byte{}, 6); got < 0 || got > 5 {
		t.Errorf("partition of the empty key: %d", got)
	}
}

func BenchmarkEncode(b *testing.B) {
	payload := bytes.Repeat([]byte("x"), 200)
	m := testMessage(1, []byte("order-1234"), payload, sinks.Header{Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
	for _, codec := range []compress.Compression{compress.None, compress.Snappy, compress.Lz4, compress.Zstd, compress.Gzip} {
		b.Run(codec.String(), func(b *testing.B) {
			batch := recordBatch{codec: codec}
			b.ReportAllocs()
			for b.Loop() {
				batch.begin()
				for range 1000 {
					batch.add(&m)
				}
				if err := batch.finish(created); err != nil {
					b.Fatal(err)
				}
				batch.stamp(producer{1, 1}, 1)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/record")
		})
	}
}
