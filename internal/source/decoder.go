package source

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/sinks"
)

// pgBinary asks PostgreSQL for a result in its binary format.
const pgBinary = 1

// The columns of readSQL and readAroundSQL.
const (
	columnLSN = iota
	columnShard
	columnID
	columnMessageID
	columnTopic
	columnKey
	columnType
	columnPayload
	columnContentType
	columnHeaders
	columnCreatedAt
	columnLocked
	columns
	// columnFound is one more of heldReadSQL.
	columnFound = columns
)

// maxNames bounds the names that a decoder remembers: topics, types and content
// types are few where people follow the conventions, and many where they do not.
const maxNames = 4096

// decoder turns result rows into messages without allocating per row: bytes go
// to the batch's buffer, and names that repeat are kept once.
type decoder struct {
	names map[string]string
}

func newDecoder() decoder { return decoder{names: make(map[string]string)} }

var errShape = errors.New("the server sent a row of another shape than the statement has")

// decode reads the rows and the flushed log position into the batch.
func (d *decoder) decode(results *pgconn.MultiResultReader, batch *rowBatch) error {
	if !results.NextResult() {
		return results.Close()
	}
	rows := results.ResultReader()
	for rows.NextRow() {
		if err := d.row(rows.Values(), batch); err != nil {
			return err
		}
	}
	if _, err := rows.Close(); err != nil {
		return err
	}
	if !results.NextResult() {
		return results.Close()
	}
	rows = results.ResultReader()
	for rows.NextRow() {
		values := rows.Values()
		if len(values) != 1 || len(values[0]) != 8 {
			return errShape
		}
		batch.flushed = binary.BigEndian.Uint64(values[0])
	}
	_, err := rows.Close()
	return err
}

// row appends one row's message to the batch, unless its key is left out.
func (d *decoder) row(values [][]byte, batch *rowBatch) error {
	if len(values) < columns || len(values[columnLSN]) != 8 || len(values[columnShard]) != 8 ||
		len(values[columnID]) != 8 || len(values[columnLocked]) != 1 {
		return errShape
	}
	total := int64(binary.BigEndian.Uint64(values[columnShard])) == allShards //nolint:gosec // two's complement on the wire
	batch.inserted = binary.BigEndian.Uint64(values[columnLSN])
	if batch.held != nil {
		if err := batch.held.row(values); err != nil {
			return err
		}
	}
	if values[columnLocked][0] == 0 || len(batch.leftOut) > 0 {
		key := Key{Topic: string(values[columnTopic]), Key: string(values[columnKey])}
		if total {
			key = Key{} // in a total order everything behind a row waits for it
		}
		_, out := batch.leftOut[key]
		if values[columnLocked][0] == 0 {
			batch.held.absence(values)
			if batch.leftOut == nil {
				batch.leftOut = make(map[Key]struct{})
			}
			if total || values[columnKey] != nil {
				batch.leftOut[key] = struct{}{}
			} else {
				batch.leftOutIDs = append(batch.leftOutIDs, int64(binary.BigEndian.Uint64(values[columnID]))) //nolint:gosec // two's complement on the wire
			}
			return nil
		}
		if out && (total || values[columnKey] != nil) {
			batch.held.absence(values)
			return nil
		}
	}
	if len(values[columnMessageID]) != 16 || len(values[columnCreatedAt]) != 8 || len(values[columnHeaders]) < 1 {
		return errShape
	}
	sequence := int64(binary.BigEndian.Uint64(values[columnID])) //nolint:gosec // two's complement on the wire
	message := sinks.Message{
		ID:          [16]byte(values[columnMessageID]),
		Sequence:    sequence,
		Topic:       d.name(values[columnTopic]),
		Key:         batch.keep(values[columnKey]),
		Type:        d.name(values[columnType]),
		Payload:     batch.keep(values[columnPayload]),
		ContentType: d.name(values[columnContentType]),
		CreatedAt:   timestamp(values[columnCreatedAt]),
	}
	// jsonb's binary format is a version byte, 1, and the text.
	if json := values[columnHeaders][1:]; string(json) != "{}" {
		first := len(batch.headers)
		if headers, err := appendHeaders(batch.headers, batch.keep(json)); err != nil {
			batch.refuse(len(batch.messages), err)
		} else {
			batch.headers = headers
			message.Headers, message.Replayed = takeReplayMark(headers[first:len(headers):len(headers)])
		}
	}
	batch.messages = append(batch.messages, message)
	shard := int(int64(binary.BigEndian.Uint64(values[columnShard]))) //nolint:gosec // two's complement on the wire
	if last := len(batch.reached) - 1; last >= 0 && batch.reached[last].shard == shard {
		batch.reached[last].id = sequence
	} else {
		batch.reached = append(batch.reached, position{shard: shard, id: sequence})
	}
	return nil
}

// refuse notes that a message cannot be sent because of its headers: somebody
// dropped the table's check.
func (b *rowBatch) refuse(i int, err error) {
	if b.refused == nil {
		b.refused = make(map[int]error)
	}
	b.refused[i] = &sinks.Error{
		Scope: sinks.ScopeMessage, Permanent: true, Reason: "headers",
		Err: fmt.Errorf("the column headers is %w: set it to an object of strings, such as {}", err),
	}
}

// row takes over what only a batch of held back messages wants to know.
func (h *heldBatch) row(values [][]byte) error {
	if len(values) != columnFound+1 || len(values[columnFound]) != 8 {
		return errShape
	}
	h.read++
	h.found = int64(binary.BigEndian.Uint64(values[columnFound]))   //nolint:gosec // two's complement on the wire
	h.shards[int64(binary.BigEndian.Uint64(values[columnShard]))]++ //nolint:gosec // two's complement on the wire
	return nil
}

// absence notes that a row is not in the batch; h may be nil.
func (h *heldBatch) absence(values [][]byte) {
	if h != nil {
		h.absent = append(h.absent, int64(binary.BigEndian.Uint64(values[columnID]))) //nolint:gosec // two's complement on the wire
	}
}

// name returns the bytes as a string that is made once.
func (d *decoder) name(b []byte) string {
	if name, ok := d.names[string(b)]; ok {
		return name
	}
	if len(d.names) >= maxNames {
		clear(d.names)
	}
	name := string(b)
	d.names[name] = name
	return name
}

// keep copies b, which the connection will overwrite, into the batch's buffer.
// Nil stays nil, and empty stays empty.
func (b *rowBatch) keep(value []byte) []byte {
	if value == nil {
		return nil
	}
	if len(value) == 0 {
		return []byte{} // a slice of an empty buffer would be nil
	}
	if len(b.buffer)+len(value) > cap(b.buffer) {
		// What was kept so far stays where it is; only the rest moves on.
		b.buffer = make([]byte, 0, max(2*cap(b.buffer), len(value), 64<<10))
	}
	start := len(b.buffer)
	b.buffer = append(b.buffer, value...)
	return b.buffer[start:len(b.buffer):len(b.buffer)]
}

// timestamp decodes microseconds since 2000, PostgreSQL's epoch. Infinity,
// which has no time, becomes the zero time.
func timestamp(b []byte) time.Time {
	const postgresEpoch = 946_684_800_000_000   // 2000-01-01 in Unix microseconds
	micros := int64(binary.BigEndian.Uint64(b)) //nolint:gosec // two's complement on the wire
	if micros == 1<<63-1 || micros == -1<<63 {
		return time.Time{}
	}
	return time.UnixMicro(micros + postgresEpoch).UTC()
}

// text returns b as a string that shares its memory.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
