package inbox

import (
	"bytes"
	"crypto/sha1" // UUID version 5 is defined by it; nothing here is a secret
	"fmt"
	"strings"

	"github.com/outboxrelay/relay/internal/uuid"
)

// ID is a message's identity, a UUID. It converts to and from any other UUID
// type with the underlying type [16]byte. The zero ID means none.
type ID [16]byte

// IsZero reports whether there is no id.
func (id ID) IsZero() bool { return id == ID{} }

// ParseID reads a UUID in the forms that producers write: 36 characters with
// hyphens or 32 without, in either case; in braces, after urn:uuid:, or in
// quotation marks, as serializers to JSON write a header.
func ParseID(s string) (ID, error) {
	var id ID
	if err := id.UnmarshalText([]byte(s)); err != nil {
		return ID{}, err
	}
	return id, nil
}

// IDFrom makes an id of a name that a foreign producer identifies its messages
// by, an order number for instance: the name's UUID version 5 in the
// namespace. The same namespace and name make the same id, everywhere and for
// ever. A namespace is any UUID of your own, one for each set of names; with
// one for two producers, the second one's message 1 is taken for a duplicate
// of the first one's.
func IDFrom(namespace ID, name string) ID {
	hash := sha1.New()
	hash.Write(namespace[:])
	hash.Write([]byte(name))
	var id ID
	copy(id[:], hash.Sum(nil))
	id[6] = id[6]&0x0f | 0x50
	id[8] = id[8]&0x3f | 0x80
	return id
}

// String returns the usual form, in lower case.
func (id ID) String() string {
	return uuid.String(id)
}

// AppendText implements encoding.TextAppender; it never fails.
func (id ID) AppendText(b []byte) ([]byte, error) {
	return uuid.Append(b, id), nil
}

// MarshalText implements encoding.TextMarshaler; it never fails.
func (id ID) MarshalText() ([]byte, error) {
	return id.AppendText(make([]byte, 0, 36))
}

// UnmarshalText implements encoding.TextUnmarshaler. It leaves id as it was
// when text is not a UUID.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, ok := uuid.Parse(canonical(text))
	if !ok {
		return fmt.Errorf("inbox: %s is not a UUID of the form %s", quote(string(text)), uuid.Form)
	}
	*id = parsed
	return nil
}

// canonical returns the usual form of what may be a UUID in another one.
func canonical(text []byte) []byte {
	text = inside(text, '"', '"')
	text = inside(text, '{', '}')
	const urn = "urn:uuid:"
	if len(text) > len(urn) && strings.EqualFold(string(text[:len(urn)]), urn) {
		text = text[len(urn):]
	}
	if len(text) != 32 {
		return text
	}
	return bytes.Join([][]byte{text[:8], text[8:12], text[12:16], text[16:20], text[20:]}, []byte("-"))
}

// inside returns what stands between two characters, or the text where it does not.
func inside(text []byte, first, last byte) []byte {
	if n := len(text); n >= 2 && text[0] == first && text[n-1] == last {
		return text[1 : n-1]
	}
	return text
}

// quote shows the beginning of a value.
func quote(s string) string {
	const limit = 60
	if len(s) > limit {
		return fmt.Sprintf("%q… (%d bytes)", s[:limit], len(s))
	}
	return fmt.Sprintf("%q", s)
}
