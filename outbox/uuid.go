package outbox

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/outboxrelay/relay/internal/uuid"
)

// UUID is a message's identity. It converts to and from any other UUID type
// with the underlying type [16]byte.
type UUID [16]byte

// ParseUUID reads the 36 characters of the usual form, in either case.
func ParseUUID(s string) (UUID, error) {
	var id UUID
	if err := id.UnmarshalText([]byte(s)); err != nil {
		return UUID{}, err
	}
	return id, nil
}

// NewUUID returns a new UUID of version 7: the time in milliseconds, then 74
// random bits. Rows and indexes by message id thus grow at their end.
func NewUUID() UUID {
	return newUUIDs(1)[0]
}

// newUUIDs asks for the time and for randomness once.
func newUUIDs(n int) []UUID {
	ids := make([]UUID, n)
	random := make([]byte, 10*n)
	_, _ = rand.Read(random) // never fails: it ends the process where there is no randomness
	var now [8]byte
	binary.BigEndian.PutUint64(now[:], uint64(time.Now().UnixMilli()))
	for i := range ids {
		id := &ids[i]
		copy(id[:6], now[2:])
		copy(id[6:], random[10*i:])
		id[6] = id[6]&0x0f | 0x70
		id[8] = id[8]&0x3f | 0x80
	}
	return ids
}

// String returns the usual form, in lower case.
func (id UUID) String() string {
	return uuid.String(id)
}

// AppendText implements encoding.TextAppender; it never fails.
func (id UUID) AppendText(b []byte) ([]byte, error) {
	return uuid.Append(b, id), nil
}

// MarshalText implements encoding.TextMarshaler; it never fails.
func (id UUID) MarshalText() ([]byte, error) {
	return id.AppendText(make([]byte, 0, 36))
}

// UnmarshalText implements encoding.TextUnmarshaler. It leaves id as it was
// when text is not a UUID.
func (id *UUID) UnmarshalText(text []byte) error {
	parsed, ok := uuid.Parse(text)
	if !ok {
		return fmt.Errorf("outbox: %s is not a UUID of the form %s", quote(string(text)), uuid.Form)
	}
	*id = parsed
	return nil
}
