package parked_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/parked"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

type place struct {
	*pgtest.Database
	lot parked.Lot
}

func newPlace(t *testing.T) place {
	d := pgtest.New(t)
	conn, err := pgx.Connect(t.Context(), d.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	d.Exec(t, `CREATE TABLE effects (n bigint GENERATED ALWAYS AS IDENTITY, message_id text)`)
	return place{d, parked.Lot{Inbox: &inbox.Inbox{Consumer: "shipping"}}}
}

func (p place) park(t *testing.T, m inbox.Message, reason string) {
	t.Helper()
	if err := p.lot.Park(t.Context(), p.Pool, m, 5, errors.New(reason)); err != nil {
		t.Fatal(err)
	}
}

func (p place) list(t *testing.T) []parked.Message {
	t.Helper()
	messages, err := p.lot.List(t.Context(), p.Pool, parked.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	return messages
}

func record(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	_, err := tx.Exec(ctx, `INSERT INTO effects (message_id) VALUES ($1)`, m.ID.String())
	return err
}

func message(n byte, key string) inbox.Message {
	return inbox.Message{
		ID: inbox.ID{n}, Topic: "orders", Key: []byte(key), Type: "OrderPlaced", Payload: []byte{0, 1, 255},
		ContentType: "application/json", Headers: map[string]string{"tenant": "a", "bad": "x\x00\xff"},
		Sequence: int64(n), Time: time.Now().Truncate(time.Millisecond), Replayed: true, Source: inbox.KafkaSource("orders", 3, int64(n)),
	}
}

func TestParkedMessageIsTheMessage(t *testing.T) {
	p := newPlace(t)
	sent := message(1, "k")
	p.park(t, sent, "no such customer")
	got := p.list(t)[0]
	if got.ID != sent.ID || got.Topic != sent.Topic || string(got.Key) != "k" || got.Type != sent.Type || string(got.Payload) != string(sent.Payload) ||
		got.ContentType != sent.ContentType || got.Sequence != sent.Sequence || !got.Time.Equal(sent.Time) || !got.Replayed || got.Source != sent.Source {
		t.Errorf("parked %+v\nlisted %+v", sent, got.Message)
	}
	if got.Headers["tenant"] != "a" || !strings.HasPrefix(got.Headers["bad"], "x") {
		t.Errorf("headers %q", got.Headers)
	}
	if got.Attempts != 5 || got.Error != "no such customer" {
		t.Errorf("attempts %d, error %q", got.Attempts, got.Error)
	}
	tombstone := inbox.Message{ID: inbox.ID{2}, Topic: "orders"}
	p.park(t, tombstone, "?")
	if got := p.list(t)[1]; got.Key != nil || got.Payload != nil || !got.Time.IsZero() || got.Source != (inbox.Source{}) {
		t.Errorf("parked a message without anything, listed %+v", got.Message)
	}
}

func TestMessageIsParkedOnce(t *testing.T) {
	p := newPlace(t)
	p.park(t, message(1, "k"), "first")
	p.park(t, message(1, "k"), "second")
	nameless := message(7, "k")
	nameless.ID = inbox.ID{}
	p.park(t, nameless, "no id")
	p.park(t, nameless, "no id")
	got := p.list(t)
	if len(got) != 2 || got[0].Attempts != 10 || got[0].Error != "second" || !got[1].ID.IsZero() {
		t.Errorf("listed %+v", got)
	}
	// A source's name is as long as its reader likes.
	nameless.Source.Name = ""
	for i := range 100 {
		nameless.Source.Name += fmt.Sprintf("%x", sha256.Sum256([]byte{byte(i)}))
	}
	p.park(t, nameless, "no id, from far away")
	if got := p.list(t); len(got) != 3 || got[2].Source.Name != nameless.Source.Name {
		t.Errorf("%d are listed", len(got))
	}
	other := parked.Lot{Inbox: &inbox.Inbox{Consumer: "billing"}}
	if got, err := other.List(t.Context(), p.Pool, parked.Filter{}); err != nil || len(got) != 0 {
		t.Errorf("another consumer lists %v, %v", got, err)
	}
}

func TestRetryHasOneEffect(t *testing.T) {
	p := newPlace(t)
	p.park(t, message(1, "k"), "broken")
	number := p.list(t)[0].Number
	broken := errors.New("still broken")
	_, err := p.lot.Retry(t.Context(), p.Pool, number, func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := record(ctx, tx, m); err != nil {
			return err
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatalf("retry returned %v", err)
	}
	if got := p.list(t); len(got) != 1 || got[0].Attempts != 6 || got[0].Error != "still broken" || p.Int(t, `SELECT count(*) FROM effects`) != 0 {
		t.Fatalf("after a failed retry: %+v", got)
	}
	if result, err := p.lot.Retry(t.Context(), p.Pool, number, record); err != nil || result != inbox.Processed {
		t.Fatalf("retry returned %v, %v", result, err)
	}
	if _, err := p.lot.Retry(t.Context(), p.Pool, number, record); !errors.Is(err, parked.ErrNotFound) {
		t.Errorf("a second retry returned %v", err)
	}
	// Delivered again, and again parked by somebody who was late.
	p.park(t, message(1, "k"), "late")
	if result, err := p.lot.Retry(t.Context(), p.Pool, p.list(t)[0].Number, record); err != nil || result != inbox.Duplicate {
		t.Errorf("retry of a processed message returned %v, %v", result, err)
	}
	if len(p.list(t)) != 0 || p.Int(t, `SELECT count(*) FROM effects`) != 1 {
		t.Error("the message is still parked, or had another effect")
	}
}

func TestRetryAllKeepsTheOrderOfAKey(t *testing.T) {
	p := newPlace(t)
	for n, key := range []string{"a", "b", "a", "b", "a"} {
		p.park(t, message(byte(n+1), key), "broken")
	}
	p.park(t, inbox.Message{ID: inbox.ID{9}, Topic: "mail"}, "broken")
	done, err := p.lot.RetryAll(t.Context(), p.Pool, parked.Filter{Topic: "orders", Limit: 2}, func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.ID[0] == 3 {
			return errors.New("not yet")
		}
		return record(ctx, tx, m)
	})
	if done != 3 || err == nil || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("retried %d, %v", done, err)
	}
	var left []byte
	for _, m := range p.list(t) {
		left = append(left, m.ID[0])
	}
	if want := []byte{3, 5, 9}; string(left) != string(want) {
		t.Errorf("still parked: %v, want %v", left, want)
	}
}

func TestDiscard(t *testing.T) {
	p := newPlace(t)
	p.park(t, message(1, "k"), "broken")
	number := p.list(t)[0].Number
	if err := p.lot.Discard(t.Context(), p.Pool, number); err != nil {
		t.Fatal(err)
	}
	if err := p.lot.Discard(t.Context(), p.Pool, number); !errors.Is(err, parked.ErrNotFound) {
		t.Errorf("a second discard returned %v", err)
	}
}

func TestMissingTableHasARemedy(t *testing.T) {
	d := pgtest.New(t)
	lot := parked.Lot{Inbox: &inbox.Inbox{Consumer: "shipping"}}
	err := lot.Park(t.Context(), d.Pool, message(1, "k"), 1, errors.New("broken"))
	if err == nil || !strings.Contains(err.Error(), "relay migrate --only inbox") {
		t.Errorf("got %v", err)
	}
}
