package outbox

import (
	"encoding/json"
	"fmt"

	"github.com/outboxrelay/relay/internal/pgarray"
)

// columns are the statement's parameters: the messages turned on their side,
// one array for each column.
//
// All but the payloads are array literals, which are text to every driver and
// in every mode of pgx. Payloads are bytes: pgx sends them as they are, while
// database/sql has no array that all drivers know, so that there they become
// a literal too.
type columns struct {
	messageIDs, topics, keys, types, contentTypes, headers, availableAt pgarray.Array
	payloads                                                            [][]byte
	// json are the messages whose payload may be written as text.
	json []int
}

// newColumns validates the messages and returns them with their ids.
func newColumns(messages []Message, added contextHeaders) (*columns, []UUID, error) {
	if err := checkUnique(messages); err != nil {
		return nil, nil, err
	}
	ids := newUUIDs(len(messages))
	c := &columns{payloads: make([][]byte, len(messages))}
	total := 0
	for i := range messages {
		m := &messages[i]
		payload, json, size, err := m.check(i)
		if err != nil {
			return nil, nil, err
		}
		if total += size; total > MaxInsertBytes {
			return nil, nil, fmt.Errorf("outbox: %d messages are more than one call takes: message %d exceeds %d MiB in all: insert them in several calls in the same transaction", len(messages), i, MaxInsertBytes>>20)
		}
		if m.ID != [16]byte{} {
			ids[i] = m.ID
		}
		c.payloads[i] = payload
		if json && storable(payload) {
			c.json = append(c.json, i)
		}
		c.messageIDs.UUID(ids[i])
		c.topics.Text(m.Topic)
		if m.Key == "" && !m.EmptyKey {
			c.keys.Null()
		} else {
			c.keys.Text(m.Key)
		}
		c.types.Text(m.Type)
		if m.ContentType == "" {
			c.contentTypes.Text(defaultContentType)
		} else {
			c.contentTypes.Text(m.ContentType)
		}
		c.headers.Text(headersText(added.merge(m.Headers)))
		if m.AvailableAt.IsZero() {
			c.availableAt.Null()
		} else {
			c.availableAt.Time(m.AvailableAt)
		}
	}
	return c, ids, nil
}

// arguments are in the order of the statement's parameters.
func (c *columns) arguments(payloads any) []any {
	return []any{
		c.messageIDs.Literal(), c.topics.Literal(), c.keys.Literal(), c.types.Literal(),
		payloads, c.contentTypes.Literal(), c.headers.Literal(), c.availableAt.Literal(),
	}
}

// takeJSON takes the payloads that are JSON out of the others, and returns them as
// an array of texts.
func (c *columns) takeJSON() string {
	size := 2 + len(c.payloads)*len(`NULL,`)
	for _, i := range c.json {
		size += len(c.payloads[i])*9/8 + len(`""`)
	}
	a, next := make(pgarray.Array, 0, size), 0
	for i := range c.payloads {
		if next < len(c.json) && c.json[next] == i {
			a.Text(string(c.payloads[i]))
			c.payloads[i] = nil
			next++
		} else {
			a.Null()
		}
	}
	return a.Literal()
}

// payloadLiteral is the payloads for a driver that has no arrays of bytes.
func (c *columns) payloadLiteral() string {
	size := 2
	for _, payload := range c.payloads {
		size += 2*len(payload) + len(`,"\\x"`)
	}
	a := make(pgarray.Array, 0, size)
	for _, payload := range c.payloads {
		if payload == nil {
			a.Null()
		} else {
			a.Bytes(payload)
		}
	}
	return a.Literal()
}

// headersText is the JSON object of headers.
func headersText(headers map[string]string) string {
	if len(headers) == 0 {
		return "{}"
	}
	object, _ := json.Marshal(headers) // strings in a map always marshal
	return string(object)
}
