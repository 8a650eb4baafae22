package groups

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go/compress"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/inbox"
)

// message is one of format 0 or 1, as segments have it that are older than
// Kafka 0.11.
func message(magic byte, codec compress.Compression, offset int64, value []byte) []byte {
	b := []byte{magic, byte(codec)}
	if magic == 1 {
		b = binary.BigEndian.AppendUint64(b, 1_700_000_000_000)
	}
	b = binary.BigEndian.AppendUint32(b, 1<<32-1) // no key
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(value))), value...)
	head := binary.BigEndian.AppendUint64(nil, uint64(offset))
	head = binary.BigEndian.AppendUint32(head, uint32(4+len(b)))
	return append(binary.BigEndian.AppendUint32(head, crc32.ChecksumIEEE(b)), b...)
}

// wrap compresses messages into one.
func wrap(t *testing.T, magic byte, codec compress.Compression, last int64, messages ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := codec.Codec().NewWriter(&b)
	if _, err := w.Write(slices.Concat(messages...)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return message(magic, codec, last, b.Bytes())
}

// batch is one of format 2 with a record.
func batch(offset int64, codec compress.Compression, content []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(codec))
	b = binary.BigEndian.AppendUint32(b, 0) // the last offset's distance
	b = binary.BigEndian.AppendUint64(b, 1_700_000_000_000)
	b = binary.BigEndian.AppendUint64(b, 1_700_000_000_000)
	b = append(b, bytes.Repeat([]byte{0xff}, 8+2+4)...) // no producer
	b = append(binary.BigEndian.AppendUint32(b, 1), content...)
	head := binary.BigEndian.AppendUint64(nil, uint64(offset))
	head = binary.BigEndian.AppendUint32(head, uint32(9+len(b)))
	head = append(binary.BigEndian.AppendUint32(head, 0), 2)
	return append(binary.BigEndian.AppendUint32(head, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))), b...)
}

// replaceSegment stops the broker, and starts it with other content in a
// partition, as if it had been written long ago.
func (s *stage) replaceSegment(partition string, content []byte) {
	s.t.Helper()
	if err := s.kafka.Stop(); err != nil {
		s.t.Fatal(err)
	}
	dir := filepath.Join(s.kafka.DataPath(), partition)
	var segment string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil || entry.IsDir():
			return err
		case strings.HasSuffix(path, ".log"):
			segment = path
			return nil
		case entry.Name() == "partition.metadata":
			return nil
		}
		return os.Remove(path) // indexes and epochs are of the old content
	})
	if err == nil {
		err = os.WriteFile(segment, content, 0o644)
	}
	if err == nil {
		// Else it would trust the indexes.
		err = os.Remove(filepath.Join(s.kafka.DataPath(), ".kafka_cleanshutdown"))
	}
	if err == nil {
		err = s.kafka.Start(s.t.Context())
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// Brokers send segments of record formats 0 and 1 as they are.
func TestOldRecordFormats(t *testing.T) {
	t.Parallel()
	s := newStage(t, servers.KafkaOptions{}, 2)
	var content []byte
	n := 0
	next := func() []byte { n++; return []byte(id(n - 1)) }
	for _, codec := range []compress.Compression{compress.None, compress.Gzip, compress.Snappy, compress.Lz4} {
		for magic := range byte(2) {
			if codec == compress.None {
				offset := int64(n)
				content = append(content, message(magic, codec, offset, next())...)
				continue
			}
			var inner [][]byte
			for i := range int64(3) {
				offset := i
				if magic == 0 {
					offset = int64(n)
				}
				inner = append(inner, message(magic, compress.None, offset, next()))
			}
			content = append(content, wrap(t, magic, codec, int64(n-1), inner...)...)
		}
	}
	s.replaceSegment(s.topic+"-0", content)
	log := newLog(t)
	config := s.config(log)
	// Such messages have no headers.
	config.Inbox.IDOf = func(m inbox.Message) (inbox.ID, error) {
		if m.ID != (inbox.ID{}) {
			return m.ID, nil
		}
		return inbox.ParseID(string(m.Payload))
	}
	_, stop := run(t, config)
	await(t, "the old messages are processed", func() bool { return s.effects() >= n })
	s.publish(n, n+10, 2)
	await(t, "the new messages are processed", func() bool { return s.effects() >= n+10 })
	stop()
	s.checkOnce(n + 10)
	if wrong := log.lines("cannot read"); len(wrong) > 0 {
		t.Error(wrong)
	}
}

// A batch that is corrupt holds back its own partition, and nothing else.
func TestCorruptBatch(t *testing.T) {
	t.Parallel()
	s := newStage(t, servers.KafkaOptions{}, 2)
	// Its checksum is right, and what is compressed in it is none.
	s.replaceSegment(s.topic+"-0", slices.Concat(message(1, compress.None, 0, []byte(id(0))), batch(1, compress.Gzip, []byte("no gzip"))))
	log := newLog(t)
	config := s.config(log)
	config.Inbox.IDOf = func(m inbox.Message) (inbox.ID, error) {
		if m.ID != (inbox.ID{}) {
			return m.ID, nil
		}
		return inbox.ParseID(string(m.Payload))
	}
	_, stop := run(t, config)
	await(t, "it is said", func() bool { return len(log.lines("orders-0: the batch at offset 1")) > 0 })
	for n := 1; n < 21; n += 2 { // in the other partition
		s.publish(n, n+1, 2)
	}
	await(t, "the other partition is processed", func() bool { return s.effects() >= 11 })
	stop()
	s.checkOnce(11)
}
