package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/outbox"
)

// refusing is a transaction that no statement may reach.
type refusing struct {
	pgx.Tx
	t *testing.T
}

func (r refusing) Query(context.Context, string, ...any) (pgx.Rows, error) {
	r.t.Error("the statement was sent")
	return nil, errors.New("sent")
}

func TestValidation(t *testing.T) {
	t.Parallel()
	id := outbox.NewUUID()
	for _, test := range []struct {
		name    string
		message outbox.Message
		field   string
		want    string
	}{
		{"empty topic", outbox.Message{}, "topic", "outbox: message 1: topic: must not be empty"},
		{"NUL in topic", outbox.Message{Topic: "or\x00ders"}, "topic", `"or\x00ders" holds a NUL byte at offset 2`},
		{"invalid topic", outbox.Message{Topic: "or\xffders"}, "topic", `"or\xffders" is not valid UTF-8`},
		{"NUL in key", outbox.Message{Topic: "t", Key: "\x00"}, "key", "NUL"},
		{"invalid key", outbox.Message{Topic: "t", Key: "\xc3"}, "key", "UTF-8"},
		{"two keys", outbox.Message{Topic: "t", Key: "k", EmptyKey: true}, "key", "EmptyKey"},
		{"NUL in type", outbox.Message{Topic: "t", Type: "a\x00"}, "type", "NUL"},
		{"invalid type", outbox.Message{Topic: "t", Type: "\xed\xa0\x80"}, "type", "UTF-8"},
		{"NUL in content type", outbox.Message{Topic: "t", ContentType: "a\x00"}, "content_type", "NUL"},
		{"NUL in header name", outbox.Message{Topic: "t", Headers: map[string]string{"a\x00": ""}}, "headers", "NUL"},
		{"invalid header name", outbox.Message{Topic: "t", Headers: map[string]string{"\xff": ""}}, "headers", "UTF-8"},
		{"empty header name", outbox.Message{Topic: "t", Headers: map[string]string{"": "x"}}, "headers", "must not be empty"},
		{"NUL in header value", outbox.Message{Topic: "t", Headers: map[string]string{"ok": "v", "bad": "\x00"}}, `headers["bad"]`, "NUL"},
		{"invalid header value", outbox.Message{Topic: "t", Headers: map[string]string{"bad": "\xff"}}, `headers["bad"]`, "UTF-8"},
		{"unmarshalable", outbox.Message{Topic: "t", JSON: make(chan int)}, "json", "unsupported type"},
		{"broken raw JSON", outbox.Message{Topic: "t", JSON: json.RawMessage(`{"a":`)}, "json", "JSON"},
		{"two payloads", outbox.Message{Topic: "t", JSON: 1, Payload: []byte("1")}, "json", "set one of them"},
		{"payload beside JSON text", outbox.Message{Topic: "t", JSONText: "1", Payload: []byte{}}, "json_text", "set one of them"},
		{"JSON beside JSON text", outbox.Message{Topic: "t", JSONText: "1", JSON: 1}, "json_text", "set one of them"},
		{"broken JSON text", outbox.Message{Topic: "t", JSONText: `{"secret`}, "json_text", "8 bytes are not valid JSON"},
		{"JSON text that is not UTF-8", outbox.Message{Topic: "t", JSONText: "\"\xff\""}, "json_text", "UTF-8"},
		{"year", outbox.Message{Topic: "t", AvailableAt: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}, "available_at", "10000"},
		{"same id twice", outbox.Message{Topic: "t", ID: id}, "message_id", id.String() + " is message 0's too"},
		{"long value", outbox.Message{Topic: strings.Repeat("x", 5000) + "\x00"}, "topic", "… (5001 bytes)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			receipts, err := outbox.Insert(t.Context(), refusing{t: t}, outbox.Message{Topic: "fine", ID: id}, test.message)
			if receipts != nil {
				t.Errorf("receipts %v", receipts)
			}
			fieldError, ok := errors.AsType[*outbox.FieldError](err)
			if !ok {
				t.Fatalf("error %v is a %[1]T", err)
			}
			if fieldError.Index != 1 || fieldError.Field != test.field {
				t.Errorf("message %d, field %s: want 1, %s", fieldError.Index, fieldError.Field, test.field)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q does not say %q", err, test.want)
			}
			if len(err.Error()) > 300 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestInsertTooMuch(t *testing.T) {
	t.Parallel()
	payload := make([]byte, outbox.MaxInsertBytes/4)
	m := outbox.Message{Topic: "t", Payload: payload}
	_, err := outbox.Insert(t.Context(), refusing{t: t}, m, m, m, m)
	if err == nil || !strings.Contains(err.Error(), "several calls") {
		t.Errorf("error %v", err)
	}
}

func TestUUID(t *testing.T) {
	t.Parallel()
	before := time.Now().Truncate(time.Millisecond)
	id := outbox.NewUUID()
	if id[6]>>4 != 7 || id[8]>>6 != 2 {
		t.Errorf("%s is not of version 7", id)
	}
	milliseconds := int64(0)
	for _, b := range id[:6] {
		milliseconds = milliseconds<<8 | int64(b)
	}
	if at := time.UnixMilli(milliseconds); at.Before(before) || at.After(time.Now()) {
		t.Errorf("%s is of %v", id, at)
	}
	parsed, err := outbox.ParseUUID(strings.ToUpper(id.String()))
	if err != nil || parsed != id {
		t.Errorf("%s became %s, %v", id, parsed, err)
	}
	for _, bad := range []string{"", "x", id.String()[1:], id.String() + "0", strings.ReplaceAll(id.String(), "-", "0"), strings.Replace(id.String(), "-", "_", 1), "g" + id.String()[1:]} {
		if _, err := outbox.ParseUUID(bad); err == nil {
			t.Errorf("%q passes as a UUID", bad)
		}
	}
	encoded, err := json.Marshal(outbox.Receipt{ID: 1, MessageID: id})
	if err != nil || !strings.Contains(string(encoded), id.String()) {
		t.Errorf("a receipt marshals as %s, %v", encoded, err)
	}
}
