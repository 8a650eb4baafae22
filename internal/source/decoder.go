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

// decode reads the rows and the answer to statements.flushed into the batch.
func (d *decoder) decode(results *pgconn.MultiResultReader, batch *rowBatch) error {
	if !results.NextResult() {
		return results.Close()
	}
	raw := isRaw(batch.conn.Conn().PgConn())
	rows := results.ResultReader()
	for rows.NextRow() {
		if err := d.row(rows.Values(), batch, raw); err != nil {
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
		if len(values) != 2 || len(values[0]) != 8 || len(values[1]) != 1 {
			return errShape
		}
		if values[1][0] != 0 {
			return errMigrated
		}
		batch.flushed = binary.BigEndian.Uint64(values[0])
	}
	_, err := rows.Close()
	return err
}

// row appends one row's message to the batch, unless its key is left out. Raw
// text is checked.
func (d *decoder) row(values [][]byte, batch *rowBatch, raw bool) error {
	if len(values) < columns || len(values[columnLSN]) != 8 || len(values[columnShard]) != 8 ||
		len(values[columnID]) != 8 || len(values[columnLocked]) != 1 {
		return errShape
	}
	batch.inserted = binary.BigEndian.Uint64(values[columnLSN])
	if batch.held != nil {
		if err := batch.held.row(values); err != nil {
			return err
		}
	}
	batch.read++
	batch.bytes += len(values[columnPayload]) + len(values[columnHeaders])
	batch.reach(int(int64Of(values[columnShard])), int64Of(values[columnID]))
	if d.leaveOut(values, batch) {
		return nil
	}
	if len(values[columnMessageID]) != 16 || len(values[columnCreatedAt]) != 8 || len(values[columnHeaders]) < 1 {
		return errShape
	}
	sequence := int64Of(values[columnID])
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
	if raw {
		batch.refuseText(&message)
	}
	batch.messages = append(batch.messages, message)
	return nil
}

// reach notes how far the batch has read in a shard.
func (b *rowBatch) reach(shard int, id int64) {
	if last := len(b.reached) - 1; last >= 0 && b.reached[last].shard == shard {
		b.reached[last].id = id
	} else {
		b.reached = append(b.reached, position{shard: shard, id: id})
	}
}

// leaveOut reports whether a row that was read is not for the batch: somebody else has it locked, or one
// before it of its key, or the caller or an earlier failure to settle has reasons.
func (d *decoder) leaveOut(values [][]byte, batch *rowBatch) bool {
	total := int64Of(values[columnShard]) == allShards
	locked := values[columnLocked][0] == 0
	keyed := total || values[columnKey] != nil
	if locked || len(batch.leftOut) > 0 {
		key := Key{Topic: string(values[columnTopic]), Key: string(values[columnKey])}
		if total {
			key = Key{} // in a total order everything behind a row waits for it
		}
		switch _, out := batch.leftOut[key]; {
		case locked:
			batch.held.absence(values)
			batch.lockedRow(int64Of(values[columnID]), key, keyed)
			return true
		case out && keyed:
			batch.held.absence(values)
			return true
		}
	}
	c := batch.claimer
	if batch.exclude.Holds == nil && c.locked.empty() && c.unsettled.empty() {
		return false
	}
	row := Row{ID: int64Of(values[columnID]), Topic: d.name(values[columnTopic]), Type: d.name(values[columnType]), Key: values[columnKey]}
	if !c.holds(&batch.exclude, &row, values[columnMessageID]) {
		return false
	}
	batch.heldBack++
	if batch.held != nil {
		batch.held.absence(values)
		batch.held.leaveOut(&row)
		if row.Key != nil {
			batch.leaveOutKey(Key{Topic: row.Topic, Key: string(row.Key)})
		}
	}
	return true
}

// lockedRow notes that somebody else has a row locked, so that its key is left out.
func (b *rowBatch) lockedRow(id int64, key Key, keyed bool) {
	if keyed {
		b.leaveOutKey(key)
	}
	b.lockedRows = append(b.lockedRows, lockedID{id, key, keyed})
}

func (b *rowBatch) leaveOutKey(key Key) {
	if b.leftOut == nil {
		b.leftOut = make(map[Key]struct{})
	}
	b.leftOut[key] = struct{}{}
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
	h.found = int64Of(values[columnFound])
	h.shards[int64Of(values[columnShard])]++
	return nil
}

// absence notes that a row is not in the batch; h may be nil.
func (h *heldBatch) absence(values [][]byte) {
	if h != nil {
		h.absent = append(h.absent, int64Of(values[columnID]))
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
	const postgresEpoch = 946_684_800_000_000 // 2000-01-01 in Unix microseconds
	micros := int64Of(b)
	if micros == 1<<63-1 || micros == -1<<63 {
		return time.Time{}
	}
	return time.UnixMicro(micros + postgresEpoch).UTC()
}

// text returns b as a string that shares its memory.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// int64Of decodes a bigint.
func int64Of(b []byte) int64 {
	return int64(binary.BigEndian.Uint64(b)) //nolint:gosec // two's complement on the wire
}
