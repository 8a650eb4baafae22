package operator

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/outbox"
)

func TestListAndFindDead(t *testing.T) {
	f := newFixture(t)
	a, b := f.dead("orders", key("a")), f.dead("orders", nil)
	c := f.dead("mail", key(""))
	list := func(options ListOptions) (ids []int64) {
		t.Helper()
		err := f.ListDead(t.Context(), options, func(d DeadLetter) error { ids = append(ids, d.ID); return nil })
		if err != nil {
			t.Fatal(err)
		}
		return ids
	}
	for want, got := range map[string][]int64{
		fmt.Sprint([]int64{a.id, b.id, c.id}): list(ListOptions{}),
		fmt.Sprint([]int64{a.id, b.id}):       list(ListOptions{Topic: key("orders")}),
		fmt.Sprint([]int64{a.id}):             list(ListOptions{Limit: 1}),
		fmt.Sprint([]int64(nil)):              list(ListOptions{Topic: key("none")}),
	} {
		if fmt.Sprint(got) != want {
			t.Errorf("listed %v, want %v", got, want)
		}
	}
	err := f.ListDead(t.Context(), ListOptions{Limit: 1}, func(d DeadLetter) error {
		if d.MessageID != a.uid || d.Topic != "orders" || *d.Key != "a" || d.Type != "Happened" || d.Attempts != 5 || d.Error != "it is too large" || d.DeadAt.IsZero() {
			t.Errorf("listed as %+v", d)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if n := len(f.findDead(Selection{Topic: "orders"})); n != 2 {
		t.Errorf("topic orders has %d", n)
	}
	if n := len(f.findDead(Selection{All: true})); n != 3 {
		t.Errorf("all are %d", n)
	}
	for says, s := range map[string]Selection{
		"topic none: it has no dead letters":                              {Topic: "none"},
		"message 00000000-0000-0000-0000-000000000007: not a dead letter": {MessageIDs: []outbox.UUID{a.uid, {15: 7}}},
	} {
		if _, err := f.FindDead(t.Context(), s); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want one that says %q", err, says)
		}
	}
}

func TestShowDead(t *testing.T) {
	f := newFixture(t)
	a := f.dead("orders", key("a"))
	f.exec(`UPDATE outbox_dead_letters SET payload = '\x00ff', available_at = created_at - interval '1 hour'`)
	tombstone := f.dead("orders", nil)
	f.exec(`UPDATE outbox_dead_letters SET payload = NULL, headers = '{}' WHERE id = $1`, tombstone.id)
	var shown []DeadMessage
	if err := f.ShowDead(t.Context(), f.findDead(Selection{All: true}), func(m DeadMessage) error { shown = append(shown, m); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(shown) != 2 {
		t.Fatalf("%d are shown", len(shown))
	}
	m := shown[0]
	if m.ID != a.id || string(m.Payload) != "\x00\xff" || !maps.Equal(m.Headers, map[string]string{"tenant": "a"}) || m.ContentType != "application/json" ||
		m.Reason != "message_too_large" || !m.AvailableAt.Valid || !m.AvailableAt.Time.Equal(m.CreatedAt.Time.Add(-time.Hour)) || !m.FirstFailedAt.Before(m.LastFailedAt) {
		t.Errorf("shown as %+v", m)
	}
	if shown[1].Payload != nil || len(shown[1].Headers) != 0 || shown[1].AvailableAt.Valid {
		t.Errorf("the tombstone is shown as %+v", shown[1])
	}
}

func TestDiscardDead(t *testing.T) {
	f := newFixture(t)
	a, b := f.dead("orders", key("a")), f.dead("orders", nil)
	stays := f.dead("mail", nil)
	s := Selection{Topic: "orders"}
	done, err := f.DiscardDead(t.Context(), s, f.findDead(s))
	if err != nil || len(done) != 2 {
		t.Fatalf("%+v, error %v", done, err)
	}
	f.same(fmt.Sprint(stays.id), `SELECT id FROM outbox_dead_letters`)
	for _, d := range f.audited("dead discard", a, b) {
		if d["type"] != "Happened" || d["error"] != "it is too large" || d["reason"] != "message_too_large" || d["attempts"] != 5.0 {
			t.Errorf("audit details %v", d)
		}
	}
	f.same("orders|a\norders|<nil>", `SELECT topic, key FROM outbox_audit ORDER BY id`)
	f.same("0", `SELECT count(*) FROM outbox_audit WHERE details::text LIKE '%payload%'`)
}

// verdict shows whether messages come in order: t, f or - for unknown.
func verdict(revived []Revived) string {
	var b strings.Builder
	for _, r := range revived {
		switch {
		case r.InOrder == nil:
			b.WriteByte('-')
		case *r.InOrder:
			b.WriteByte('t')
		default:
			b.WriteByte('f')
		}
	}
	return b.String()
}

func (f *fixture) retryDead(s Selection) []Revived {
	f.t.Helper()
	done, err := f.RetryDead(f.t.Context(), s, f.findDead(s))
	if err != nil {
		f.t.Fatal(err)
	}
	return done
}

func TestRetryDeadPutsTheRowBack(t *testing.T) {
	f := newFixture(t)
	m := f.dead("orders", key("a"))
	f.exec(`UPDATE outbox_dead_letters SET payload = '\x00ff', content_type = 'application/x', available_at = created_at - interval '1 hour'`)
	before := f.text(`SELECT id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at FROM outbox_dead_letters`)
	waits := f.insert("orders", key("a"))
	notified := f.listen("outbox")
	if done := f.retryDead(m.selection()); len(done) != 1 || done[0].ID != m.id || verdict(done) != "t" {
		t.Errorf("%+v", done)
	}
	notified()
	f.same(before, `SELECT id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at FROM outbox WHERE published_at IS NULL AND id < $1`, waits.id)
	f.same("0", `SELECT count(*) FROM outbox_dead_letters`)
	f.same(fmt.Sprintf("%d|%s|orders|a|retrying|0|message_too_large|it is too large|true|<nil>", m.id, m.uid),
		`SELECT id, message_id::text, topic, key, state, attempts, reason, error, next_retry_at <= now(), parked_at FROM outbox_parked`)
	f.audited("dead retry", m)
}

func TestRetryDeadSaysWhetherItComesLate(t *testing.T) {
	inOrder := newFixture(t)
	late := inOrder.dead("orders", key("late"))
	inOrder.published("orders", key("late"))
	replayed := inOrder.dead("orders", key("replayed"))
	inOrder.exec(`INSERT INTO outbox (topic, key, headers) VALUES ('orders', 'replayed', '{"outbox-relay:replayed": "true"}')`)
	inOrder.published("orders", key("first"))
	first := inOrder.dead("orders", key("first"))
	inOrder.published("mail", key("first"))
	inOrder.insert("orders", key("first"))
	null := inOrder.dead("orders", nil)
	inOrder.published("orders", nil)
	old := inOrder.dead("orders", key("old"))
	inOrder.exec(`UPDATE outbox_dead_letters SET created_at = now() - interval '25 hours' WHERE id = $1`, old.id)
	oldAndLate := inOrder.dead("orders", key("old and late"))
	inOrder.exec(`UPDATE outbox_dead_letters SET created_at = now() - interval '25 hours' WHERE id = $1`, oldAndLate.id)
	inOrder.published("orders", key("old and late"))
	letters := inOrder.findDead(Selection{All: true})
	overtaken, unknown, err := inOrder.Overtaken(t.Context(), letters)
	if err != nil || overtaken != 3 || unknown != 1 {
		t.Errorf("%d overtaken, %d unknown, error %v; want 3 and 1", overtaken, unknown, err)
	}
	done := inOrder.retryDead(Selection{MessageIDs: []outbox.UUID{late.uid, replayed.uid, first.uid, null.uid, old.uid, oldAndLate.uid}})
	if got := verdict(done); got != "fft--f" {
		t.Errorf("verdict %s, want fft--f", got)
	}

	deleting := newFixture(t, func(o *Options) { o.OnPublished = source.Delete })
	deleting.dead("orders", key("a"))
	if got := verdict(deleting.retryDead(Selection{All: true})); got != "-" {
		t.Errorf("on_published delete: verdict %s, want unknown", got)
	}
	total := newFixture(t, func(o *Options) { o.Ordering = source.OrderTotal })
	total.dead("orders", key("a"))
	total.published("mail", nil)
	total.dead("orders", nil)
	if got := verdict(total.retryDead(Selection{All: true})); got != "ft" {
		t.Errorf("total order: verdict %s, want ft", got)
	}
	none := newFixture(t, func(o *Options) { o.Ordering = source.OrderNone })
	none.dead("orders", key("a"))
	none.published("orders", key("a"))
	if got := verdict(none.retryDead(Selection{All: true})); got != "-" {
		t.Errorf("no order: verdict %s, want -", got)
	}
}

func TestRetryDeadHoldsTheKey(t *testing.T) {
	for name, test := range map[string]struct {
		// arrange makes rows and returns the entries that are wanted.
		arrange func(f *fixture) string
	}{
		"several of a key: the lowest is the head": {func(f *fixture) string {
			a := f.dead("orders", key("a"))
			f.dead("orders", key("a"))
			b := f.dead("mail", key("a"))
			return fmt.Sprintf("%d|retrying|0\n%d|retrying|0", a.id, b.id)
		}},
		"without key: each": {func(f *fixture) string {
			a, b := f.dead("orders", nil), f.dead("orders", nil)
			return fmt.Sprintf("%d|retrying|0\n%d|retrying|0", a.id, b.id)
		}},
		"the key is parked behind it": {func(f *fixture) string {
			a := f.dead("orders", key("a"))
			f.parked("orders", key("a"))
			return fmt.Sprintf("%d|retrying|0", a.id)
		}},
		"the key is parked before it": {func(f *fixture) string {
			head := f.parked("orders", key("a"))
			f.dead("orders", key("a"))
			return fmt.Sprintf("%d|parked|5", head.id)
		}},
		"both": {func(f *fixture) string {
			a := f.dead("orders", key("a"))
			f.parked("orders", key("a"))
			f.dead("orders", key("a"))
			return fmt.Sprintf("%d|retrying|0", a.id)
		}},
		"the key of another topic is parked": {func(f *fixture) string {
			other := f.parked("mail", key("a"))
			a := f.dead("orders", key("a"))
			return fmt.Sprintf("%d|parked|5\n%d|retrying|0", other.id, a.id)
		}},
		"it was skipped, and no relay has drained its key": {func(f *fixture) string {
			a := f.parked("orders", key("a"))
			f.skipAll()
			return fmt.Sprintf("%d|retrying|0", a.id)
		}},
		"it was skipped, without key": {func(f *fixture) string {
			a := f.parked("orders", nil)
			f.skipAll()
			return fmt.Sprintf("%d|retrying|0", a.id)
		}},
		"the key drains after an earlier one": {func(f *fixture) string {
			a := f.park(f.insert("orders", key("a")), Draining)
			f.dead("orders", key("a"))
			return fmt.Sprintf("%d|draining|5", a.id)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			want := test.arrange(f)
			dead := f.text(`SELECT id, message_id::text, topic, key FROM outbox_dead_letters ORDER BY id`)
			f.retryDead(Selection{All: true})
			if got := f.entries(); got != want {
				t.Errorf("entries\n%s\nwant\n%s", got, want)
			}
			f.same("0", `SELECT count(*) FROM outbox_dead_letters`)
			if back := f.text(`SELECT id, message_id::text, topic, key FROM outbox WHERE published_at IS NULL ORDER BY id`); !containsLines(back, dead) {
				t.Errorf("pending are\n%s\nwithout some of\n%s", back, dead)
			}
			// An entry always names a pending row, and its message.
			f.same("0", `SELECT count(*) FROM outbox_parked p WHERE state = 'retrying'
				AND NOT EXISTS (SELECT FROM outbox o WHERE (o.id, o.message_id, o.topic) = (p.id, p.message_id, p.topic) AND o.key IS NOT DISTINCT FROM p.key)`)
		})
	}
}

// Where the order is not by key, an entry holds back itself or all later rows.
func TestRetryDeadInOtherOrderings(t *testing.T) {
	for _, ordering := range []source.Ordering{source.OrderNone, source.OrderTotal} {
		f := newFixture(t, func(o *Options) { o.Ordering = ordering })
		a := f.dead("orders", key("a"))
		parked := f.parked("orders", key("a"))
		b := f.dead("orders", key("a"))
		skipped := f.parked("orders", key("a"))
		if _, err := f.SkipParked(t.Context(), skipped.selection(), f.findParked(skipped.selection())); err != nil {
			t.Fatal(err)
		}
		f.retryDead(Selection{All: true})
		if got, want := f.entries(), fmt.Sprintf("%d|retrying|0\n%d|parked|5\n%d|retrying|0\n%d|retrying|0", a.id, parked.id, b.id, skipped.id); got != want {
			t.Errorf("ordering %s: entries\n%s\nwant\n%s", ordering, got, want)
		}
	}
}

// Ids begin anew after TRUNCATE … RESTART IDENTITY; entries and dead letters may
// be left from before.
func TestIDsThatBeganAnew(t *testing.T) {
	f := newFixture(t)
	m := f.dead("orders", key("a"))
	f.exec(`INSERT INTO outbox_parked (id, message_id, topic, key, state, attempts, reason, error, parked_at)
		VALUES ($1, gen_random_uuid(), 'mail', 'stale', 'parked', 1, '', '', now())`, m.id)
	f.retryDead(m.selection())
	f.same(fmt.Sprintf("%d|%s|orders|a|retrying", m.id, m.uid), `SELECT id, message_id::text, topic, key, state FROM outbox_parked`)

	// A letter is meant with its message id.
	other := f.dead("orders", key("b"))
	letter := f.findDead(other.selection())[0]
	letter.MessageID = outbox.UUID{15: 7}
	if done, err := f.DiscardDead(t.Context(), other.selection(), []Letter{letter}); err != nil || len(done) != 0 || len(f.Gone()) != 1 {
		t.Errorf("%d done, %d gone, error %v; want 0, 1", len(done), len(f.Gone()), err)
	}
	f.findDead(other.selection())
	// An entry is not about another message that has its id.
	parked := f.parked("orders", key("c"))
	f.exec(`UPDATE outbox SET message_id = gen_random_uuid() WHERE id = $1`, parked.id)
	done, err := f.SkipParked(t.Context(), parked.selection(), f.findParked(parked.selection()))
	if err != nil || len(done) != 1 || done[0].DeadLetter {
		t.Errorf("%+v, error %v; want no dead letter", done, err)
	}
}

func (f *fixture) skipAll() {
	f.t.Helper()
	if _, err := f.SkipParked(f.t.Context(), Selection{All: true}, f.findParked(Selection{All: true})); err != nil {
		f.t.Fatal(err)
	}
}

func containsLines(text, lines string) bool {
	for line := range strings.Lines(lines) {
		if !strings.Contains(text+"\n", strings.TrimSuffix(line, "\n")+"\n") {
			return false
		}
	}
	return true
}

func TestRetryDeadWhoseIDIsTaken(t *testing.T) {
	f := newFixture(t)
	free, m := f.dead("orders", key("a")), f.dead("orders", key("b"))
	f.exec(`INSERT INTO outbox (id, topic) VALUES ($1, 'somebody else')`, m.id)
	before := f.everything()
	s := Selection{MessageIDs: []outbox.UUID{free.uid, m.uid}}
	_, err := f.RetryDead(t.Context(), s, f.findDead(s))
	if _, ok := errors.AsType[*IDTakenError](err); !ok || !strings.Contains(err.Error(), m.uid.String()) || strings.Contains(err.Error(), free.uid.String()) {
		t.Errorf("error %v, want one about %s only", err, m.uid)
	}
	if after := f.everything(); after != before {
		t.Errorf("something was changed:\n%s\nbefore:\n%s", after, before)
	}
}

// A relay that has a later row of the key under way will have published it: the
// operator waits, and then says so.
func TestRetryDeadWaitsForWhatIsUnderWay(t *testing.T) {
	f := newFixture(t)
	f.lockTimeout = time.Minute
	m, later := f.dead("orders", key("a")), f.insert("orders", key("a"))
	relay := f.begin()
	f.in(relay, `SELECT pg_advisory_xact_lock($1, (hashtextextended('a', 0) & 63)::int)`, source.LockClass("public", "outbox"))
	f.in(relay, `SELECT FROM outbox WHERE id = $1 FOR UPDATE`, later.id)
	letters := f.findDead(m.selection())
	type outcome struct {
		done []Revived
		err  error
	}
	ended := make(chan outcome, 1)
	go func() {
		done, err := f.RetryDead(t.Context(), m.selection(), letters)
		ended <- outcome{done, err}
	}()
	f.blocked()
	f.in(relay, `UPDATE outbox SET published_at = clock_timestamp() WHERE id = $1`, later.id)
	f.commit(relay)
	got := <-ended
	if got.err != nil || verdict(got.done) != "f" {
		t.Errorf("verdict %s, error %v; want f", verdict(got.done), got.err)
	}

	// And what a relay publishes after it is in order.
	m = f.dead("orders", key("b"))
	later = f.insert("orders", key("b"))
	s := m.selection()
	done, err := inBatches(t.Context(), f.Operator, s, f.findDead(s), f.lettersAgain(reviving), f.Operator.retryDead)
	if err != nil {
		t.Fatal(err)
	}
	f.exec(`UPDATE outbox SET published_at = clock_timestamp() WHERE id IN ($1, $2)`, m.id, later.id)
	if err := f.judgeOrder(t.Context(), done); err != nil || verdict(done) != "t" {
		t.Errorf("verdict %s, error %v; want t", verdict(done), err)
	}
}

func TestRetryDeadGivesUpOnAFrozenRelay(t *testing.T) {
	f := newFixture(t)
	m := f.dead("orders", key("a"))
	before := f.everything()
	relay := f.begin()
	f.in(relay, `SELECT pg_advisory_xact_lock($1, s) FROM generate_series(0, 63) s`, source.LockClass("public", "outbox"))
	f.lockTimeout = 200 * time.Millisecond
	if _, err := f.RetryDead(t.Context(), m.selection(), f.findDead(m.selection())); !errors.Is(err, ErrBusy) {
		t.Errorf("error %v, want ErrBusy", err)
	}
	if after := f.everything(); after != before {
		t.Errorf("something was changed:\n%s\nbefore:\n%s", after, before)
	}
}

// Looking for what was published later must not take for ever.
func TestOrderThatCannotBeKnownInTime(t *testing.T) {
	f := newFixture(t)
	m := f.dead("orders", key("a"))
	done, err := inBatches(t.Context(), f.Operator, m.selection(), f.findDead(m.selection()), f.lettersAgain(reviving), f.Operator.retryDead)
	if err != nil {
		t.Fatal(err)
	}
	f.lookTimeout = 100 * time.Millisecond
	tx := f.begin()
	f.in(tx, `LOCK TABLE outbox`)
	if err := f.judgeOrder(t.Context(), done); err != nil || verdict(done) != "-" {
		t.Errorf("verdict %s, error %v; want -", verdict(done), err)
	}
}

// Two operators who retry the same dead letter put it back once.
func TestTwoOperatorsRetryTheSameDeadLetter(t *testing.T) {
	f := newFixture(t)
	other := newOperator(t, f.db.URL)
	m := f.dead("orders", key("a"))
	letters := f.findDead(m.selection())
	results := make(chan string, 2)
	for _, o := range []*Operator{f.Operator, other} {
		go func() {
			done, err := o.RetryDead(t.Context(), m.selection(), letters)
			results <- fmt.Sprintf("%d%v%v", len(done), o.Gone(), err)
		}()
	}
	first, second := <-results, <-results
	if !strings.HasPrefix(first, "1") {
		first, second = second, first
	}
	if first != "1[]<nil>" || !strings.HasPrefix(second, "0[{orders ") || !strings.HasSuffix(second, "by another operator, and is pending}]<nil>") {
		t.Errorf("%s; %s; want that one put it back, and the other says so", first, second)
	}
	f.same(fmt.Sprint(m.id), `SELECT id FROM outbox`)
	f.same("1", `SELECT count(*) FROM outbox_audit`)
}
