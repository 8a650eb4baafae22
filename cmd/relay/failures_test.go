package main

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
)

// failures are an outbox with two parked messages, one of a key behind which two
// rows wait and one without a key; three dead letters, one of which was overtaken;
// and three published rows.
func failures(t *testing.T) (*pgtest.Database, string) {
	t.Helper()
	db := pgtest.NewOutbox(t)
	db.Exec(t, `
INSERT INTO outbox (id, message_id, topic, key) SELECT n, ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, t, k
FROM (VALUES (1, 'orders', 'a'), (2, 'orders', 'a'), (3, 'orders', 'a'), (4, 'mail', NULL)) AS v(n, t, k);
INSERT INTO outbox_parked (id, message_id, topic, key, state, attempts, reason, error, parked_at, next_retry_at)
SELECT id, message_id, topic, key, 'parked', 5, 'message_too_large', E'too large: \x1b[31mred', '2026-03-01 10:00:00+00', '2126-03-01 10:00:00+00' FROM outbox WHERE id IN (1, 4);
INSERT INTO outbox_dead_letters (id, message_id, topic, key, type, payload, content_type, headers, created_at, attempts, reason, error, first_failed_at, last_failed_at, dead_at)
SELECT n, ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, t, k, 'OrderPlaced', p::bytea, 'application/json', '{"tenant": "a"}', now(), 5, 'invalid', 'not valid', now(), now(), '2026-03-01 10:00:00+00'
FROM (VALUES (11, 'orders', 'd', '{"a": "' || chr(27) || '[2J"}'), (12, 'orders', '', '\x00ff'), (13, 'mail', NULL, NULL)) AS v(n, t, k, p);
INSERT INTO outbox (id, message_id, topic, key, published_at) SELECT n, ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, t, k, now()
FROM (VALUES (21, 'orders', 'd'), (22, 'orders', 'e'), (23, 'mail', NULL)) AS v(n, t, k)`)
	return db, configure(t, db)
}

// uid is the message id of the row.
func uid(n int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012d", n) }

// listed are the objects of a JSON array by their ids, checked to have the keys.
func listed(t *testing.T, r result, keys ...string) map[int]map[string]any {
	t.Helper()
	r.expect(t, 0, words{}, nil)
	objects := map[int]map[string]any{}
	for _, element := range decode[[]any](t, r) {
		tree := expectKeys(t, "element", element, keys...)
		objects[int(tree["id"].(float64))] = tree
	}
	return objects
}

func expectObject(t *testing.T, got map[string]any, want map[string]any) {
	t.Helper()
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %#v, want %#v", name, got[name], value)
		}
	}
}

func TestParkedList(t *testing.T) {
	db, file := failures(t)
	got := listed(t, execute(t, "parked", "list", "--output", "json", "--config", file),
		"topic", "key", "message_id", "id", "attempts", "error", "parked_at", "next_retry_at", "waiting")
	if len(got) != 2 {
		t.Errorf("%d are listed", len(got))
	}
	expectObject(t, got[1], map[string]any{
		"topic": "orders", "key": "a", "message_id": uid(1), "attempts": 5.0, "error": "too large: \x1b[31mred", "waiting": 2.0,
		"parked_at": "2026-03-01T10:00:00Z", "next_retry_at": "2126-03-01T10:00:00Z",
	})
	expectObject(t, got[4], map[string]any{"topic": "mail", "key": nil, "waiting": 0.0})
	text := execute(t, "parked", "list", "--config", file)
	text.expect(t, 0, words{"TOPIC", "orders  a    " + uid(1) + "  5         2", `too large: \x1b[31mred`, "mail    -  "}, nil)
	if strings.Contains(text.stdout, "\x1b") {
		t.Errorf("an escape sequence is shown: %q", text.stdout)
	}
	execute(t, "parked", "list", "--topic", "none", "--config", file).expect(t, 0, words{"nothing is parked"}, nil)
	execute(t, "parked", "list", "--topic", "none", "--output", "json", "--config", file).expect(t, 0, words{"[]"}, nil)
	db.Exec(t, `UPDATE outbox_parked SET state = 'draining' WHERE id = 1`)
	if got := listed(t, execute(t, "parked", "list", "--all-states", "--output", "json", "--config", file),
		"topic", "key", "message_id", "id", "attempts", "error", "parked_at", "next_retry_at", "waiting", "state"); got[1]["state"] != "draining" || got[4]["state"] != "parked" {
		t.Errorf("all states: %v", got)
	}
	execute(t, "parked", "list", "--all-states", "--config", file).expect(t, 0, words{"STATE", "draining  orders"}, nil)
}

func TestParkedRetryAndSkip(t *testing.T) {
	db, file := failures(t)
	got := listed(t, execute(t, "parked", "retry", "--message-id", uid(4), "--yes", "--output", "json", "--config", file), "topic", "key", "message_id", "id")
	if len(got) != 1 || got[4]["message_id"] != uid(4) || got[4]["key"] != nil {
		t.Errorf("retried %v", got)
	}
	if n := db.Int(t, `SELECT id FROM outbox_parked WHERE next_retry_at <= now()`); n != 4 {
		t.Errorf("%d is due, want 4", n)
	}
	for _, unknown := range [][]string{{"--message-id", uid(4) + "," + uid(99)}, {"--topic", "orders", "--key", "x"}, {"--topic", "mail", "--key", ""}, {"--message-id", uid(2)}} {
		for _, verb := range []string{"retry", "skip"} {
			says := "not parked"
			if unknown[0] == "--message-id" {
				says = unknown[1][len(unknown[1])-36:] + ": not parked"
			}
			execute(t, append(append(words{"parked", verb}, unknown...), "--yes", "--config", file)...).expect(t, 1, nil, words{says, "nothing was changed"})
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM outbox_dead_letters`); n != 3 {
		t.Errorf("something was skipped")
	}
	execute(t, "parked", "skip", "--topic", "orders", "--key", "a", "--yes", "--config", file).expect(t, 0,
		words{"orders  a  " + uid(1) + "  moved to the dead letters", "1 message was skipped"}, nil)
	got = listed(t, execute(t, "parked", "skip", "--all", "--yes", "--output", "json", "--config", file), "topic", "key", "message_id", "id", "dead_letter")
	if len(got) != 1 || got[4]["dead_letter"] != true {
		t.Errorf("skipped %v", got)
	}
	execute(t, "parked", "skip", "--all", "--yes", "--config", file).expect(t, 0, words{"nothing is parked"}, nil)
	execute(t, "parked", "retry", "--all", "--yes", "--output", "json", "--config", file).expect(t, 0, words{"[]"}, nil)
	if n := db.Int(t, `SELECT count(*) FROM outbox_audit WHERE action IN ('parked retry', 'parked skip') AND os_user LIKE '%_@_%'`); n != 3 {
		t.Errorf("%d records in the audit, want 3", n)
	}
}

func TestDeadList(t *testing.T) {
	db, file := failures(t)
	got := listed(t, execute(t, "dead", "list", "--output", "json", "--config", file),
		"message_id", "id", "topic", "key", "type", "attempts", "error", "dead_at")
	if len(got) != 3 {
		t.Errorf("%d are listed", len(got))
	}
	expectObject(t, got[11], map[string]any{
		"message_id": uid(11), "topic": "orders", "key": "d", "type": "OrderPlaced", "attempts": 5.0, "error": "not valid", "dead_at": "2026-03-01T10:00:00Z",
	})
	expectObject(t, got[12], map[string]any{"key": ""})
	expectObject(t, got[13], map[string]any{"key": nil})
	execute(t, "dead", "list", "--config", file).expect(t, 0, words{"TOPIC", "orders  d    " + uid(11) + "  OrderPlaced  5", `orders  ""   `, "mail    -    "}, nil)
	if got := listed(t, execute(t, "dead", "list", "--topic", "orders", "--limit", "1", "--output", "json", "--config", file),
		"message_id", "id", "topic", "key", "type", "attempts", "error", "dead_at"); len(got) != 1 || got[11] == nil {
		t.Errorf("the oldest of orders: %v", got)
	}
	db.Exec(t, `DELETE FROM outbox_dead_letters`)
	execute(t, "dead", "list", "--config", file).expect(t, 0, words{"there are no dead letters"}, nil)
	execute(t, "dead", "list", "--output", "json", "--config", file).expect(t, 0, words{"[]"}, nil)
	// More than are aligned together, and than memory should hold.
	db.Exec(t, `INSERT INTO outbox_dead_letters (id, message_id, topic, type, content_type, headers, created_at, attempts, reason, error, first_failed_at, last_failed_at)
		SELECT n, gen_random_uuid(), 't', '', '', '{}', now(), 1, '', '', now(), now() FROM generate_series(1, 2500) n`)
	if got := listed(t, execute(t, "dead", "list", "--output", "json", "--config", file),
		"message_id", "id", "topic", "key", "type", "attempts", "error", "dead_at"); len(got) != 2500 {
		t.Errorf("%d of 2500 are listed", len(got))
	}
	if text := execute(t, "dead", "list", "--config", file); strings.Count(text.stdout, "\n") != 2501 {
		t.Errorf("%d lines", strings.Count(text.stdout, "\n"))
	}
	execute(t, "dead", "discard", "--all", "--yes", "--config", file).expect(t, 0, words{"… and 2480 more", "2500 dead letters were discarded"}, nil)
}

func TestDeadShow(t *testing.T) {
	db, file := failures(t)
	keys := words{
		"message_id", "id", "topic", "key", "type", "attempts", "error", "dead_at", "reason", "payload", "payload_base64",
		"content_type", "headers", "available_at", "created_at", "first_failed_at", "last_failed_at",
	}
	got := listed(t, execute(t, "dead", "show", "--all", "--output", "json", "--config", file), keys...)
	expectObject(t, got[11], map[string]any{"payload": "{\"a\": \"\x1b[2J\"}", "payload_base64": nil, "reason": "invalid", "content_type": "application/json", "available_at": nil})
	expectObject(t, got[12], map[string]any{"payload": nil, "payload_base64": base64.StdEncoding.EncodeToString([]byte("\x00\xff"))})
	expectObject(t, got[13], map[string]any{"payload": nil, "payload_base64": nil})
	if headers := got[11]["headers"].(map[string]any); len(headers) != 1 || headers["tenant"] != "a" {
		t.Errorf("headers %v", headers)
	}
	if one := listed(t, execute(t, "dead", "show", uid(12), "--output", "json", "--config", file), keys...); len(one) != 1 || one[12] == nil {
		t.Errorf("shown %v", one)
	}
	text := execute(t, "dead", "show", uid(11), strings.ToUpper(uid(12)), "--config", file)
	text.expect(t, 0, words{
		"message id    " + uid(11), "key           d", "type          OrderPlaced", "header        tenant: a", "reason        invalid",
		`    {"a": "\x1b[2J"}`, "2 bytes, no text: --payload raw", `key           ""`,
	}, nil)
	if raw := execute(t, "dead", "show", "--payload", "raw", uid(12), "--config", file); raw.stdout != "\x00\xff" || raw.code != 0 {
		t.Errorf("the raw payload is %q, %s", raw.stdout, raw)
	}
	execute(t, "dead", "show", "--payload", "raw", "--topic", "orders", "--config", file).expect(t, 1, nil, words{"2 messages are selected"})
	execute(t, "dead", "show", "--topic", "none", "--config", file).expect(t, 1, nil, words{"topic none", "no dead letters"})
	execute(t, "dead", "show", uid(1), "--config", file).expect(t, 1, nil, words{uid(1), "not a dead letter"})
	db.Exec(t, `UPDATE outbox_dead_letters SET payload = convert_to(repeat('ä', 5000), 'UTF8') WHERE id = 11`)
	long := execute(t, "dead", "show", uid(11), "--config", file)
	long.expect(t, 0, words{"10000 bytes, the first 4096 of which follow: --payload raw writes all", strings.Repeat("ä", 2048) + "\n"}, nil)
	db.Exec(t, `DELETE FROM outbox_dead_letters`)
	execute(t, "dead", "show", "--all", "--config", file).expect(t, 0, words{"there are no dead letters"}, nil)
	execute(t, "dead", "show", "--all", "--output", "json", "--config", file).expect(t, 0, words{"[]"}, nil)
}

func TestDeadRetryAndDiscard(t *testing.T) {
	db, file := failures(t)
	execute(t, "dead", "retry", uid(11), uid(99), "--yes", "--config", file).expect(t, 1, nil, words{uid(99) + ": not a dead letter", "nothing was changed"})
	execute(t, "dead", "discard", uid(11), uid(99), "--yes", "--config", file).expect(t, 1, nil, words{uid(99) + ": not a dead letter", "nothing was changed"})
	execute(t, "dead", "retry", "--topic", "none", "--yes", "--config", file).expect(t, 1, nil, words{"topic none"})
	if n := db.Int(t, `SELECT count(*) FROM outbox_dead_letters`); n != 3 {
		t.Errorf("%d dead letters are left of 3", n)
	}
	execute(t, "dead", "retry", uid(11), "--yes", "--config", file).expect(t, 0,
		words{"orders  d  " + uid(11) + "  put back; it COMES AFTER LATER MESSAGES", "1 dead letter was put back into the outbox, 1 of them after later messages"}, nil)
	got := listed(t, execute(t, "dead", "retry", "--topic", "orders", "--yes", "--output", "json", "--config", file), "topic", "key", "message_id", "id", "in_order")
	if len(got) != 1 || got[12]["in_order"] != true || got[12]["key"] != "" {
		t.Errorf("retried %v", got)
	}
	if got := listed(t, execute(t, "dead", "discard", uid(13), uid(13), "--yes", "--output", "json", "--config", file), "topic", "key", "message_id", "id"); len(got) != 1 {
		t.Errorf("discarded %v", got)
	}
	for _, verb := range []string{"retry", "discard"} {
		execute(t, "dead", verb, "--all", "--yes", "--config", file).expect(t, 0, words{"there are no dead letters"}, nil)
	}
	if n := db.Int(t, `SELECT count(*) FROM outbox WHERE id IN (11, 12) AND published_at IS NULL`); n != 2 {
		t.Errorf("%d of 2 are back", n)
	}
}

func TestReplayCommand(t *testing.T) {
	db, file := failures(t)
	count := func() int64 {
		return db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL AND headers @> '{"outbox-relay:replayed": "true"}'`)
	}
	execute(t, "replay", "--all", "--dry-run", "--config", file).expect(t, 0, words{"mail    1\norders  2\n3 messages would be published again"}, nil)
	execute(t, "replay", "--all", "--dry-run", "--limit", "2", "--config", file).expect(t, 0, words{"more than --limit 2"}, nil)
	tree := expectKeys(t, "replay", decode[any](t, execute(t, "replay", "--topic", "orders", "--dry-run", "--output", "json", "--config", file)), "dry_run", "messages", "topics")
	if tree["dry_run"] != true || tree["messages"] != 2.0 {
		t.Errorf("dry run %v", tree)
	}
	if topic := expectKeys(t, "topic", tree["topics"].([]any)[0], "topic", "messages"); topic["topic"] != "orders" || topic["messages"] != 2.0 {
		t.Errorf("topic %v", topic)
	}
	execute(t, "replay", "--topic", "none", "--dry-run", "--output", "json", "--config", file).expect(t, 0, words{`"messages": 0`, `"topics": []`}, nil)
	execute(t, "replay", "--topic", "none", "--yes", "--config", file).expect(t, 1, nil, words{"no published row is selected"})
	execute(t, "replay", "--all", "--limit", "2", "--yes", "--config", file).expect(t, 1, nil, words{"more than 2 messages", "--limit"})
	execute(t, "replay", "--message-id", uid(21), "--message-id", uid(1), "--yes", "--config", file).expect(t, 1, nil, words{uid(1), "not among the published rows"})
	execute(t, "replay", "--message-id", uid(99), "--dry-run", "--config", file).expect(t, 1, nil, words{uid(99)})
	execute(t, "replay", "--until", "1h", "--yes", "--config", file).expect(t, 1, nil, words{"no published row"})
	if n := count(); n != 0 {
		t.Fatalf("%d were replayed", n)
	}
	execute(t, "replay", "--topic", "orders", "--key", "d", "--since", "1h", "--yes", "--config", file).expect(t, 0, words{"orders  1", "1 message is published again"}, nil)
	if n := count(); n != 1 {
		t.Errorf("%d were replayed, want 1", n)
	}
	tree = decode[map[string]any](t, execute(t, "replay", "--message-id", uid(22)+","+uid(23), "--since", "2026-01-01T00:00:00Z", "--yes", "--output", "json", "--config", file))
	if tree["dry_run"] != false || tree["messages"] != 2.0 || count() != 3 {
		t.Errorf("replayed %v", tree)
	}
}

func TestStatusCountsFailures(t *testing.T) {
	db, file := failures(t)
	db.Exec(t, `DELETE FROM outbox WHERE topic = 'mail'`)
	got := map[string]map[string]any{}
	for _, topic := range decode[map[string]any](t, execute(t, "status", "--output", "json", "--config", file))["topics"].([]any) {
		got[topic.(map[string]any)["topic"].(string)] = topic.(map[string]any)
	}
	expectObject(t, got["orders"], map[string]any{"pending": 3.0, "parked_keys": 1.0, "dead_letters": 2.0})
	expectObject(t, got["mail"], map[string]any{"pending": 0.0, "oldest_pending_age_seconds": 0.0, "parked_keys": 1.0, "dead_letters": 1.0})
	execute(t, "status", "--config", file).expect(t, 0, words{"TOPIC   PENDING  OLDEST", "mail    0        0s      1            1"}, nil)
}

func TestOperatorsBeforeTheMigration(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `DROP TABLE outbox_parked, outbox_dead_letters, outbox_audit`)
	file := configure(t, db)
	for _, arguments := range [][]string{
		{"parked", "list"}, {"parked", "retry", "--all", "--yes"}, {"parked", "skip", "--message-id", uid(1), "--yes"},
		{"dead", "list"}, {"dead", "show", "--all"}, {"dead", "retry", "--all", "--yes"}, {"dead", "discard", uid(1), "--yes"},
	} {
		execute(t, append(arguments, "--config", file)...).expect(t, 1, nil, words{"does not exist", "relay migrate"})
	}
	execute(t, "status", "--config", file).expect(t, 1, words{"down: ", "relay migrate"}, nil)
}
