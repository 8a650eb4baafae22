package outbox

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// columns are the statement's parameters: the messages turned on their side,
// one array for each column.
//
// All but the payloads are array literals, which are text to every driver and
// in every mode of pgx. Payloads are bytes: pgx sends them as they are, while
// database/sql has no array that all drivers know, so that there they become
// a literal too.
type columns struct {
	messageIDs, topics, keys, types, contentTypes, headers, availableAt array
	payloads                                                            [][]byte
	// json are the messages whose payload may be written as text.
	json []int
}

// newColumns validates the messages and returns them with their ids.
func newColumns(messages []Message, trace traceHeaders) (*columns, []UUID, error) {
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
		c.messageIDs.uuid(ids[i])
		c.topics.text(m.Topic)
		if m.Key == "" && !m.EmptyKey {
			c.keys.null()
		} else {
			c.keys.text(m.Key)
		}
		c.types.text(m.Type)
		if m.ContentType == "" {
			c.contentTypes.text(defaultContentType)
		} else {
			c.contentTypes.text(m.ContentType)
		}
		c.headers.json(trace.merge(m.Headers))
		if m.AvailableAt.IsZero() {
			c.availableAt.null()
		} else {
			c.availableAt.time(m.AvailableAt)
		}
	}
	return c, ids, nil
}

// arguments are in the order of the statement's parameters.
func (c *columns) arguments(payloads any) []any {
	return []any{
		c.messageIDs.literal(), c.topics.literal(), c.keys.literal(), c.types.literal(),
		payloads, c.contentTypes.literal(), c.headers.literal(), c.availableAt.literal(),
	}
}

// takeJSON takes the payloads that are JSON out of the others, and returns them as
// an array of texts.
func (c *columns) takeJSON() string {
	size := 2 + len(c.payloads)*len(`NULL,`)
	for _, i := range c.json {
		size += len(c.payloads[i])*9/8 + len(`""`)
	}
	a, next := make(array, 0, size), 0
	for i := range c.payloads {
		if next < len(c.json) && c.json[next] == i {
			a.text(string(c.payloads[i]))
			c.payloads[i] = nil
			next++
		} else {
			a.null()
		}
	}
	return a.literal()
}

// payloadLiteral is the payloads for a driver that has no arrays of bytes.
func (c *columns) payloadLiteral() string {
	size := 2
	for _, payload := range c.payloads {
		size += 2*len(payload) + len(`,"\\x"`)
	}
	a := make(array, 0, size)
	for _, payload := range c.payloads {
		if payload == nil {
			a.null()
		} else {
			a.bytes(payload)
		}
	}
	return a.literal()
}

// array is a PostgreSQL array literal in the making.
type array []byte

// next begins an element.
func (a *array) next() {
	if len(*a) == 0 {
		*a = append(*a, '{')
	} else {
		*a = append(*a, ',')
	}
}

func (a *array) null() {
	a.next()
	*a = append(*a, "NULL"...)
}

func (a *array) uuid(id UUID) {
	a.next()
	*a, _ = id.AppendText(*a)
}

// time writes ISO 8601 in UTC, which no setting of the session changes.
func (a *array) time(t time.Time) {
	a.next()
	*a = append(*a, '"')
	*a = t.UTC().AppendFormat(*a, "2006-01-02T15:04:05.000000Z")
	*a = append(*a, '"')
}

func (a *array) bytes(b []byte) {
	a.next()
	*a = append(*a, `"\\x`...)
	*a = hex.AppendEncode(*a, b)
	*a = append(*a, '"')
}

func (a *array) text(s string) {
	a.next()
	*a = append(*a, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			*a = append(*a, '\\')
		}
		*a = append(*a, s[i])
	}
	*a = append(*a, '"')
}

func (a *array) json(headers map[string]string) {
	if len(headers) == 0 {
		a.text("{}")
		return
	}
	object, _ := json.Marshal(headers) // strings in a map always marshal
	a.text(string(object))
}

// literal ends the array, which must not be empty.
func (a *array) literal() string {
	return string(*a) + "}"
}
