package operator

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/outbox"
)

func TestReplay(t *testing.T) {
	f := newFixture(t)
	var old, young, mail, empty, null message
	arrange := func() {
		f.exec(`TRUNCATE outbox`)
		old, young = f.published("orders", key("a")), f.published("orders", key("b"))
		f.exec(`UPDATE outbox SET created_at = now() - interval '3 hours', headers = '{"tenant": "a"}' WHERE id = $1`, old.id)
		mail, empty, null = f.published("mail", key("a")), f.published("mail", key("")), f.published("mail", nil)
		f.insert("orders", key("a")) // pending: never selected
	}
	arrange()
	at := func(span time.Duration) *Moment { return &Moment{At: time.Now().Add(-span)} }
	for name, test := range map[string]struct {
		filter Filter
		want   []*message
	}{
		"all":                 {Filter{}, []*message{&old, &young, &mail, &empty, &null}},
		"topic":               {Filter{Topic: key("orders")}, []*message{&old, &young}},
		"key":                 {Filter{Key: key("a")}, []*message{&old, &mail}},
		"empty key":           {Filter{Key: key("")}, []*message{&empty}},
		"topic and key":       {Filter{Topic: key("orders"), Key: key("a")}, []*message{&old}},
		"since a span":        {Filter{Topic: key("orders"), Since: &Moment{Ago: time.Hour}}, []*message{&young}},
		"until a time":        {Filter{Until: at(time.Hour)}, []*message{&old}},
		"between":             {Filter{Since: at(4 * time.Hour), Until: &Moment{Ago: 2 * time.Hour}}, []*message{&old}},
		"nothing":             {Filter{Topic: key("none")}, nil},
		"nothing in the span": {Filter{Since: at(2 * time.Hour), Until: at(time.Hour)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			arrange()
			counts, err := f.CountReplay(t.Context(), test.filter)
			if err != nil {
				t.Fatal(err)
			}
			rows, err := f.Replay(t.Context(), test.filter, 5)
			if err != nil {
				t.Fatal(err)
			}
			var got, want []int64
			var counted int64
			for _, r := range rows {
				got = append(got, r.ID)
			}
			for _, m := range test.want {
				want = append(want, m.id)
			}
			for _, c := range counts {
				counted += c.Messages
			}
			if !slices.Equal(got, want) || counted != int64(len(want)) || !slices.Equal(counts, CountByTopic(rows)) {
				t.Errorf("replayed %v, counted %v; want %v", got, counts, want)
			}
			replayed := f.text(`SELECT coalesce(string_agg(id::text, ' ' ORDER BY id), '') FROM outbox WHERE published_at IS NULL AND headers ->> 'outbox-relay:replayed' = 'true'`)
			if replayed != strings.Trim(fmt.Sprint(want), "[]") {
				t.Errorf("pending with the header are %s, want %v", replayed, want)
			}
			f.same(fmt.Sprint(5-len(want)), `SELECT count(*) FROM outbox WHERE published_at IS NOT NULL AND NOT headers ? 'outbox-relay:replayed'`)
			f.same("1", `SELECT count(*) FROM outbox WHERE published_at IS NULL AND NOT headers ? 'outbox-relay:replayed'`)
		})
	}
	arrange()
	notified := f.listen("outbox")
	if _, err := f.Replay(t.Context(), Filter{Topic: key("orders"), Since: at(4 * time.Hour)}, 5); err != nil {
		t.Fatal(err)
	}
	notified()
	f.same(`{"tenant": "a", "outbox-relay:replayed": "true"}`, `SELECT headers::text FROM outbox WHERE id = $1`, old.id)
	for _, d := range f.audited("replay", old, young) {
		if d["topic"] != "orders" || d["since"] == nil || d["until"] != nil || d["key"] != nil {
			t.Errorf("audit details %v", d)
		}
	}
}

func TestReplayByMessageID(t *testing.T) {
	f := newFixture(t)
	a, b, pending := f.published("orders", key("a")), f.published("orders", nil), f.insert("orders", nil)
	before := f.everything()
	for _, ids := range [][]outbox.UUID{{a.uid, {15: 7}}, {a.uid, pending.uid}} {
		unknown := ids[1].String()
		_, countErr := f.CountReplay(t.Context(), Filter{MessageIDs: ids})
		_, err := f.Replay(t.Context(), Filter{MessageIDs: ids}, 10)
		for _, err := range []error{countErr, err} {
			if _, ok := errors.AsType[*NotFoundError](err); !ok || !strings.Contains(err.Error(), unknown) || strings.Contains(err.Error(), a.uid.String()) {
				t.Errorf("error %v, want one about %s", err, unknown)
			}
		}
	}
	if after := f.everything(); after != before {
		t.Errorf("something was changed:\n%s\nbefore:\n%s", after, before)
	}
	if rows, err := f.Replay(t.Context(), Filter{MessageIDs: []outbox.UUID{a.uid, b.uid}}, 10); err != nil || len(rows) != 2 {
		t.Errorf("%v, error %v", rows, err)
	}
	f.audited("replay", a, b)
}

func TestReplayOfMoreThanTheLimit(t *testing.T) {
	f := newFixture(t)
	for range 3 {
		f.published("orders", nil)
	}
	before := f.everything()
	rows, err := f.Replay(t.Context(), Filter{}, 2)
	if _, ok := errors.AsType[*TooManyError](err); !ok || !strings.Contains(err.Error(), "more than 2 ") || rows != nil {
		t.Errorf("%v, error %v", rows, err)
	}
	if after := f.everything(); after != before {
		t.Errorf("something was changed:\n%s\nbefore:\n%s", after, before)
	}
	if rows, err := f.Replay(t.Context(), Filter{}, 3); err != nil || len(rows) != 3 {
		t.Errorf("%v, error %v", rows, err)
	}
}

// Rows that are pruned or replayed by somebody else meanwhile are not replayed.
func TestReplayBesidePruningAndAnotherReplay(t *testing.T) {
	f := newFixture(t)
	f.lockTimeout = time.Minute
	a, b, c := f.published("orders", nil), f.published("orders", nil), f.published("orders", nil)
	other := f.begin()
	f.in(other, `DELETE FROM outbox WHERE id = $1`, a.id)
	f.in(other, `UPDATE outbox SET published_at = NULL WHERE id = $1`, b.id)
	type outcome struct {
		rows []Letter
		err  error
	}
	ended := make(chan outcome, 1)
	go func() {
		rows, err := f.Replay(t.Context(), Filter{Topic: key("orders")}, 10)
		ended <- outcome{rows, err}
	}()
	f.blocked()
	f.commit(other)
	if got := <-ended; got.err != nil || len(got.rows) != 1 || got.rows[0].ID != c.id {
		t.Errorf("replayed %v, error %v; want %d", got.rows, got.err, c.id)
	}
	f.same(fmt.Sprint(c.id), `SELECT id FROM outbox WHERE headers ? 'outbox-relay:replayed'`)
}
