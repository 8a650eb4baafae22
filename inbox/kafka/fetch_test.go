package kafka

import (
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
)

func batch(base, producer int64, attributes protocol.Attributes, offsets ...int64) *protocol.RecordBatch {
	var list []protocol.Record
	for _, offset := range offsets {
		list = append(list, protocol.Record{Offset: offset})
	}
	return &protocol.RecordBatch{BaseOffset: base, ProducerID: producer, Attributes: attributes, Records: protocol.NewRecordReader(list...)}
}

func marker(offset, producer int64) *protocol.ControlBatch {
	return &protocol.ControlBatch{BaseOffset: offset, ProducerID: producer, Records: protocol.NewRecordReader(protocol.Record{Offset: offset})}
}

func readAll(t *testing.T, r *records) (offsets []int64) {
	t.Helper()
	for {
		found, err := r.read()
		if errors.Is(err, io.EOF) {
			return offsets
		}
		if err != nil {
			t.Fatal(err)
		}
		offsets = append(offsets, found.offset)
	}
}

// Records of aborted transactions are not for consumers; brokers send them all
// the same.
func TestAbortedTransactionsArePassedOver(t *testing.T) {
	const transactional = protocol.Transactional
	r := &records{
		next: 11, stable: 40, dropping: map[int64]bool{},
		aborted: []fetch.ResponseTransaction{{ProducerID: 1, FirstOffset: 12}, {ProducerID: 2, FirstOffset: 20}},
		batches: []protocol.RecordReader{
			batch(10, 7, 0, 10, 11),             // 10 is before what was asked for
			batch(12, 1, transactional, 12, 13), // aborted
			batch(14, 2, transactional, 14),     // committed below
			batch(15, 1, transactional, 15),     // aborted
			marker(16, 1), marker(17, 2),
			batch(18, 1, transactional, 18), // the next transaction of 1, committed
			batch(19, 9, 0, 19),
			batch(20, 2, transactional, 20, 21), // aborted
			marker(22, 1), marker(23, 2),
		},
	}
	if got, want := readAll(t, r), []int64{11, 14, 18, 19}; !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
	if r.next != 24 {
		t.Errorf("the next offset is %d", r.next)
	}
}

func TestStuck(t *testing.T) {
	for name, test := range map[string]struct {
		batch protocol.RecordReader
		stuck bool
	}{
		"a batch without records":        {batch(10, -1, 0), true},
		"a batch with earlier ones only": {batch(8, -1, 0, 8, 9), true},
		"a later batch without records":  {batch(11, -1, 0), false},
		"a batch with a record":          {batch(8, -1, 0, 8, 10), false},
	} {
		r := &records{next: 10, stable: 20, dropping: map[int64]bool{}, batches: []protocol.RecordReader{test.batch}}
		readAll(t, r)
		if got := r.stuck(10); got != test.stuck {
			t.Errorf("%s: stuck is %v", name, got)
		}
	}
	if (&records{next: 10, stable: 20}).stuck(10) {
		t.Error("nothing came: stuck")
	}
}

func TestSubscriptionsOfAllVersions(t *testing.T) {
	mine := encodeSubscription([]string{"orders", "mail"}, []byte("rack"))
	for name, b := range map[string][]byte{
		"mine":              mine,
		"kafka-go's":        append([]byte{0, 1}, mine[2:]...),
		"a later version's": append(append([]byte{0, 3}, mine[2:]...), 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff),
	} {
		topics, userData, err := decodeSubscription(b)
		if err != nil || !slices.Equal(topics, []string{"orders", "mail"}) || string(userData) != "rack" {
			t.Errorf("%s: %v, %q, %v", name, topics, userData, err)
		}
	}
	for n := range mine {
		if _, _, err := decodeSubscription(mine[:n]); err == nil {
			t.Errorf("a subscription of %d bytes of %d was taken", n, len(mine))
		}
	}
	partitions := map[string][]int32{"orders": {0, 5}, "mail": {2}}
	got, err := decodeAssignment(encodeAssignment(partitions))
	if err != nil || len(got) != 2 || !slices.Equal(got["orders"], partitions["orders"]) || !slices.Equal(got["mail"], partitions["mail"]) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := decodeAssignment(nil); err != nil || len(got) != 0 {
		t.Errorf("no assignment at all: %v, %v", got, err)
	}
}
