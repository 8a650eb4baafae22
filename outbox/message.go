package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Message is one message to publish. Only Topic is required.
type Message struct {
	// ID is the message's identity, what consumers recognise a duplicate by.
	// Zero means that Insert makes a new one (UUID version 7). Any UUID type
	// with the underlying type [16]byte can be assigned to it.
	ID [16]byte
	// Topic is the logical destination; the relay's routes say which broker,
	// topic or queue it stands for.
	Topic string
	// Key orders messages: within one topic and key they are published in
	// ascending id. On Kafka it is the record's key too. Empty means no key
	// (SQL's null): such messages have no order among themselves.
	Key string
	// EmptyKey writes a key that is the empty string rather than null: a key
	// like any other, shared by all messages that have it.
	EmptyKey bool
	// Type is what happened, in the past tense by convention: "OrderPlaced".
	Type string
	// Payload is sent byte for byte. Nil is SQL's null, on Kafka a tombstone.
	Payload []byte
	// JSON, unless nil, is marshalled by encoding/json when Insert runs, and
	// is the payload; Payload must then be nil. Bytes that are JSON already
	// may be given as a json.RawMessage, which Insert then checks. It is sent as
	// encoding/json wrote it, from the column payload_json; Insert writes it to
	// payload where the table lacks that column, or an encoding is not UTF-8.
	JSON any
	// JSONText, unless empty, is JSON that is text already. It is checked, and
	// sent as it is written; Payload and JSON must then be nil.
	JSONText string
	// ContentType describes the payload; empty means "application/json".
	ContentType string
	// Headers are sent as they are. Insert adds the trace context to them, see
	// Writer.Propagator, and with the context of an inbox's handler the ids
	// correlation-id and causation-id; names that are there already are left
	// alone.
	Headers map[string]string
	// AvailableAt, unless zero, is the earliest time of publication. A delayed
	// message does not hold back the later ones of its key. Times are kept in
	// microseconds.
	AvailableAt time.Time
}

const defaultContentType = "application/json"

// MaxInsertBytes is how many bytes of payloads and text one call of Insert
// takes. PostgreSQL's limit of one message on the wire is 1 GiB, and binary
// data may need two bytes for one.
const MaxInsertBytes = 256 << 20

// messageOverhead is added to a message's size for what its row of the
// parameters needs besides its bytes.
const messageOverhead = 128

// check validates the message and returns its payload, whether that is known to
// be JSON, and its size towards MaxInsertBytes.
func (m *Message) check(index int) (payload []byte, isJSON bool, size int, err error) {
	fail := func(field string, err error) ([]byte, bool, int, error) {
		return nil, false, 0, &FieldError{Index: index, Field: field, Err: err}
	}
	if m.Topic == "" {
		return fail("topic", errors.New("must not be empty"))
	}
	if m.EmptyKey && m.Key != "" {
		return fail("key", fmt.Errorf("is %s although EmptyKey asks for an empty one: set Key or EmptyKey", quote(m.Key)))
	}
	for _, text := range [...]struct{ field, value string }{
		{"topic", m.Topic}, {"key", m.Key}, {"type", m.Type}, {"content_type", m.ContentType},
	} {
		if err := checkText(text.value); err != nil {
			return fail(text.field, err)
		}
		size += len(text.value)
	}
	headers, field, err := checkHeaders(m.Headers)
	if err != nil {
		return fail(field, err)
	}
	if !m.AvailableAt.IsZero() {
		if year := m.AvailableAt.UTC().Year(); year < 1 || year > 9999 {
			return fail("available_at", fmt.Errorf("its year is %d: must be 1 to 9999", year))
		}
	}
	payload = m.Payload
	if m.JSON != nil {
		if m.Payload != nil {
			return fail("json", errors.New("is set, and so is payload: set one of them"))
		}
		if payload, err = json.Marshal(m.JSON); err != nil {
			return fail("json", err)
		}
		isJSON = true
	}
	if m.JSONText != "" {
		if payload != nil {
			return fail("json_text", errors.New("is set, and so is json or payload: set one of them"))
		}
		payload, isJSON = []byte(m.JSONText), true
		if !json.Valid(payload) || !utf8.Valid(payload) {
			return fail("json_text", fmt.Errorf("its %d bytes are not valid JSON in UTF-8", len(payload)))
		}
	}
	return payload, isJSON, size + headers + len(payload) + messageOverhead, nil
}

// checkHeaders returns the size of all, or the field that is wrong.
func checkHeaders(headers map[string]string) (size int, field string, err error) {
	for name, value := range headers {
		if name == "" {
			return 0, "headers", errors.New("the name of a header must not be empty")
		}
		if err := checkText(name); err != nil {
			return 0, "headers", fmt.Errorf("the name of a header %w", err)
		}
		if err := checkText(value); err != nil {
			return 0, "headers[" + quote(name) + "]", err
		}
		size += len(name) + len(value)
	}
	return size, "", nil
}

// checkText reports what PostgreSQL's text cannot hold.
func checkText(s string) error {
	if i := strings.IndexByte(s, 0); i >= 0 {
		return fmt.Errorf("%s holds a NUL byte at offset %d, which PostgreSQL's text cannot", quote(s), i)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s is not valid UTF-8", quote(s))
	}
	return nil
}

// quote shows the beginning of a value.
func quote(s string) string {
	const limit = 60
	if len(s) > limit {
		return fmt.Sprintf("%q… (%d bytes)", s[:limit], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// checkUnique reports an id that the caller gave to two messages: a consumer
// would drop the second of them as a duplicate. Ids made here are unique.
func checkUnique(messages []Message) error {
	given := func(m Message) bool { return m.ID != [16]byte{} }
	first := slices.IndexFunc(messages, given)
	if first < 0 {
		return nil
	}
	seen := make(map[[16]byte]int, len(messages)-first)
	for i := first; i < len(messages); i++ {
		m := &messages[i]
		if !given(*m) {
			continue
		}
		if earlier, ok := seen[m.ID]; ok {
			return &FieldError{Index: i, Field: "message_id", Err: fmt.Errorf("%s is message %d's too: every message needs an id of its own", UUID(m.ID), earlier)}
		}
		seen[m.ID] = i
	}
	return nil
}
