package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/internal/pgtest"
)

// The row of docs/wire.md.
const (
	wireID   = "0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f"
	wireTime = "2026-03-01T12:00:00.25Z"
)

func wireInstant(t *testing.T) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, wireTime)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func headers(pairs ...string) (list []inbox.Header) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, inbox.Header{Name: pairs[i], Value: []byte(pairs[i+1])})
	}
	return list
}

// text is what a message was decoded to.
func text(m inbox.Message) string {
	return fmt.Sprintf("%s key=%q type=%q content=%q sequence=%d time=%s replayed=%v", m.ID, m.Key, m.Type, m.ContentType, m.Sequence, m.Time.UTC().Format(time.RFC3339Nano), m.Replayed)
}

const none = "0001-01-01T00:00:00Z"

func TestDecodeKafka(t *testing.T) {
	for _, test := range []struct {
		name    string
		headers []inbox.Header
		want    string
	}{
		{"plain", headers("message-id", wireID, "message-type", "OrderPlaced", "message-sequence", "4", "message-time", wireTime, "content-type", "application/json", "tenant", "acme"),
			wireID + ` key="k" type="OrderPlaced" content="application/json" sequence=4 time=` + wireTime + ` replayed=false`},
		{"cloudevents", headers("ce_specversion", "1.0", "ce_id", wireID, "ce_type", "OrderPlaced", "ce_source", "/outbox", "ce_time", wireTime, "ce_subject", "o-17", "content-type", "application/json", "tenant", "acme"),
			wireID + ` key="k" type="OrderPlaced" content="application/json" sequence=0 time=` + wireTime + ` replayed=false`},
		{"debezium", headers("id", wireID, "eventType", "OrderPlaced", "tenant", "acme"),
			wireID + ` key="k" type="OrderPlaced" content="" sequence=0 time=` + none + ` replayed=false`},
		{"a replay", headers("message-id", wireID, "message-replayed", "true", "tenant", "acme"),
			wireID + ` key="k" type="" content="" sequence=0 time=` + none + ` replayed=true`},
		{"the last of two", headers("message-id", "x", "tenant", "other", "message-id", wireID, "tenant", "acme"),
			wireID + ` key="k" type="" content="" sequence=0 time=` + none + ` replayed=false`},
		{"what cannot be read", headers("message-id", wireID, "message-sequence", "-4", "message-time", "yesterday", "message-replayed", "yes", "tenant", "acme"),
			wireID + ` key="k" type="" content="" sequence=0 time=` + none + ` replayed=false`},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := inbox.Message{Topic: "orders", Key: []byte("k"), Sequence: 99}
			inbox.Decoder{}.Kafka(&m, test.headers)
			if got := text(m); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if m.Headers["tenant"] != "acme" || m.Topic != "orders" {
				t.Errorf("%+v", m)
			}
		})
	}
	m := inbox.Message{}
	inbox.Decoder{}.Kafka(&m, headers("ce_specversion", "1.0", "ce_subject", "o-17", "\xff", "\xff"))
	if string(m.Key) != "o-17" || m.Headers["\uFFFD"] != "\uFFFD" {
		t.Errorf("%+v", m)
	}
}

func TestDecodeRabbitMQ(t *testing.T) {
	properties := inbox.Properties{MessageID: wireID, Type: "OrderPlaced", ContentType: "application/json", Timestamp: wireInstant(t).Truncate(time.Second)}
	whole := ` key="o-17" type="OrderPlaced" content="application/json" sequence=%d time=%s replayed=false`
	for _, test := range []struct {
		name       string
		properties inbox.Properties
		headers    map[string]any
		want       string
	}{
		{"plain", properties, map[string]any{"message-key": "o-17", "message-sequence": int64(6)}, fmt.Sprintf(wireID+whole, 6, "2026-03-01T12:00:00Z")},
		{"a narrow integer", properties, map[string]any{"message-key": "o-17", "message-sequence": int32(6)}, fmt.Sprintf(wireID+whole, 6, "2026-03-01T12:00:00Z")},
		{"cloudevents", properties, map[string]any{"message-key": "o-17", "cloudEvents_specversion": "1.0", "cloudEvents_id": wireID, "cloudEvents_type": "OrderPlaced", "cloudEvents_time": wireTime, "cloudEvents_subject": "o-17"},
			fmt.Sprintf(wireID+whole, 0, wireTime)},
		{"cloudevents without properties", inbox.Properties{ContentType: "application/json"}, map[string]any{"cloudEvents:specversion": "1.0", "cloudEvents:id": wireID, "cloudEvents:type": "OrderPlaced", "cloudEvents:time": wireInstant(t), "cloudEvents:subject": []byte("o-17")},
			fmt.Sprintf(wireID+whole, 0, wireTime)},
		{"debezium", properties, map[string]any{"message-key": "o-17", "id": wireID, "eventType": "OrderPlaced"}, fmt.Sprintf(wireID+whole, 0, "2026-03-01T12:00:00Z")},
		{"debezium without properties", inbox.Properties{}, map[string]any{"id": wireID, "eventType": "OrderPlaced"},
			wireID + ` key="" type="OrderPlaced" content="" sequence=0 time=` + none + ` replayed=false`},
		{"a replay", inbox.Properties{MessageID: wireID}, map[string]any{"message-replayed": true},
			wireID + ` key="" type="" content="" sequence=0 time=` + none + ` replayed=true`},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.headers["tenant"] = "acme"
			test.headers["x-death"] = []any{map[string]any{"count": int64(1)}}
			m := inbox.Message{Topic: "orders"}
			inbox.Decoder{}.RabbitMQ(&m, test.properties, maps.Clone(test.headers))
			if got := text(m); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if m.Headers["tenant"] != "acme" || !strings.Contains(m.Headers["x-death"], "count") || len(m.Headers) != len(test.headers) {
				t.Errorf("headers %v", m.Headers)
			}
		})
	}
	var m inbox.Message
	inbox.Decoder{}.RabbitMQ(&m, inbox.Properties{}, map[string]any{"message-key": ""})
	if m.Key == nil {
		t.Error("an empty key is none")
	}
}

func TestIDsOfForeignProducers(t *testing.T) {
	kafka := func(d inbox.Decoder, topic string, list ...string) inbox.Message {
		m := inbox.Message{Topic: topic}
		d.Kafka(&m, headers(list...))
		return m
	}
	d := inbox.Decoder{IDHeader: "x-id"}
	if got := kafka(d, "a", "x-id", wireID).ID.String(); got != wireID {
		t.Errorf("a UUID became %s", got)
	}
	one := kafka(d, "a", "x-id", "1", "message-id", wireID).ID
	// Ids are for ever: another value here would make all messages new.
	if one.String() != "819c3f91-7b99-50e4-b948-11779e52ae50" {
		t.Errorf("message 1 became %s", one)
	}
	// It was dead-lettered, or moved to another topic or queue, and is what it was.
	if moved := kafka(d, "a.dead", "x-id", "1").ID; moved != one {
		t.Errorf("in another topic it is %s", moved)
	}
	for name, other := range map[string]inbox.Message{
		"of another producer's own": kafka(inbox.Decoder{IDHeader: "x-id", Namespace: newID()}, "a", "x-id", "1"),
		"with another number":       kafka(d, "a", "x-id", "2"),
	} {
		if other.ID == one || other.ID.IsZero() {
			t.Errorf("the message %s has the id %s", name, other.ID)
		}
	}
	if got := kafka(d, "a", "message-id", wireID).ID.String(); got != wireID {
		t.Errorf("a message of the relay's became %s", got)
	}
	for name, want := range map[string]string{"message_id": "m-1", "correlation_id": "c-1", "x-id": "x-1"} {
		m := inbox.Message{Topic: "a"}
		inbox.Decoder{IDHeader: name}.RabbitMQ(&m, inbox.Properties{MessageID: "m-1", CorrelationID: "c-1"}, map[string]any{"x-id": "x-1"})
		if m.ID != inbox.IDFrom(inbox.ForeignIDs, want) {
			t.Errorf("%s became %s", name, m.ID)
		}
	}
}

// A message that was processed under the identity of earlier versions is a
// duplicate as long as the decoder claims both; what is new is new once.
func TestTransitionOfForeignIDs(t *testing.T) {
	decode := func(d inbox.Decoder, topic, value string) inbox.Message {
		m := inbox.Message{Topic: topic}
		d.IDHeader = "x-id"
		d.Kafka(&m, headers("x-id", value))
		return m
	}
	earlier, between, now := inbox.Decoder{IDPerTopic: true}, inbox.Decoder{Transition: true}, inbox.Decoder{}
	eachProcessor(t, func(t *testing.T, db *pgtest.Database, p processor) {
		box := &inbox.Inbox{Consumer: "mail"}
		for _, step := range []struct {
			name    string
			message inbox.Message
			want    inbox.Result
		}{
			{"before the upgrade", decode(earlier, "a", "1"), inbox.Processed},
			{"delivered again after it", decode(between, "a", "1"), inbox.Duplicate},
			{"a UUID before", decode(earlier, "a", wireID), inbox.Processed},
			{"a UUID after", decode(between, "a", wireID), inbox.Duplicate},
			{"new", decode(between, "a", "2"), inbox.Processed},
			{"again", decode(between, "a", "2"), inbox.Duplicate},
			{"again, to an instance of the earlier version", decode(earlier, "a", "2"), inbox.Duplicate},
			{"moved back", decode(between, "a.dead", "2"), inbox.Duplicate},
			{"after the transition", decode(now, "a.dead", "2"), inbox.Duplicate},
			{"in quotes, as a serializer of JSON writes it", decode(now, "a", `"2"`), inbox.Duplicate},
		} {
			result, err := p.process(t.Context(), box, step.message, nothing)
			expectResult(t, step.name, result, step.want, err)
		}
		results, err := box.ProcessBatch(t.Context(), db.Pool, []inbox.Message{
			decode(between, "a", "1"), decode(between, "a", "3"), decode(between, "a.dead", "3"), decode(between, "a", "2"), decode(between, "a", "4"), decode(earlier, "a", "4"), decode(earlier, "a", "5"), decode(between, "a", "5"),
		}, applyAll)
		if err != nil || fmt.Sprint(results) != "[duplicate processed duplicate duplicate processed duplicate processed duplicate]" {
			t.Errorf("the batch: %v (%v)", results, err)
		}
	})
}

// What is there in place of an id is named, so that one can name it to the
// decoder.
func TestMissingIDSaysWhatIsThere(t *testing.T) {
	box := &inbox.Inbox{Consumer: "mail"}
	for want, decode := range map[string]func(m *inbox.Message){
		"neither header message-id": func(m *inbox.Message) { inbox.Decoder{}.Kafka(m, nil) },
		`header message-id is "17", not a UUID`: func(m *inbox.Message) {
			inbox.Decoder{}.Kafka(m, headers("message-id", "17"))
		},
		`CloudEvents' id is "17", not a UUID`: func(m *inbox.Message) {
			inbox.Decoder{}.Kafka(m, headers("ce_specversion", "1.0", "ce_id", "17"))
		},
		`property message_id is "ID:414d51", not a UUID`: func(m *inbox.Message) {
			inbox.Decoder{}.RabbitMQ(m, inbox.Properties{MessageID: "ID:414d51"}, nil)
		},
	} {
		m := inbox.Message{ID: newID()} // of a message that was decoded into it before
		decode(&m)
		_, err := box.Process(context.Background(), nil, m, apply)
		if !errors.Is(err, inbox.ErrNoID) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
}
