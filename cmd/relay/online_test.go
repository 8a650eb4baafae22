package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
)

// configure is a relay on the database, whose broker nobody listens at.
func configure(t *testing.T, db *pgtest.Database) string {
	t.Helper()
	return write(t, fmt.Sprintf(`
database: {url: %q}
sinks: {main: {kafka: {brokers: ["127.0.0.1:1"]}}}
http: {listen: ""}
`, db.URL))
}

// decode reads one JSON document and nothing else.
func decode[T any](t *testing.T, r result) (document T) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(r.stdout))
	if err := decoder.Decode(&document); err != nil {
		t.Fatalf("%v\n%s", err, r)
	}
	if decoder.More() {
		t.Errorf("more than one document\n%s", r)
	}
	return document
}

// expectKeys checks that an object has these keys and no others.
func expectKeys(t *testing.T, what string, object any, keys ...string) map[string]any {
	t.Helper()
	tree, ok := object.(map[string]any)
	if !ok {
		t.Fatalf("%s is %T: %v", what, object, object)
	}
	if got := slices.Sorted(maps.Keys(tree)); !slices.Equal(got, slices.Sorted(slices.Values(keys))) {
		t.Errorf("%s has the keys %v, want %v", what, got, keys)
	}
	return tree
}

func TestMigrateCommand(t *testing.T) {
	db := pgtest.New(t)
	file := configure(t, db)
	execute(t, "migrate", "--dry-run", "--config", file).expect(t, 0, words{"pending: 1 outbox"}, nil)
	if n := db.Int(t, `SELECT count(*) FROM pg_class WHERE relname LIKE 'outbox%'`); n != 0 {
		t.Error("--dry-run made something")
	}
	execute(t, "migrate", "--config", file).expect(t, 0, words{"applied: 1 outbox"}, nil)
	execute(t, "migrate", "--only", "outbox", "--config", file).expect(t, 0, words{"nothing is pending"}, nil)
	execute(t, "migrate", "--dry-run", "--config", file).expect(t, 0, words{"nothing is pending"}, nil)
}

func TestMigrateDocument(t *testing.T) {
	db := pgtest.New(t)
	file := configure(t, db)
	list := func(arguments ...string) []any {
		t.Helper()
		r := execute(t, slices.Concat([]string{"migrate", "--output", "json", "--config", file}, arguments)...)
		r.expect(t, 0, words{"["}, nil)
		return decode[[]any](t, r)
	}
	pending := list("--dry-run", "--only", "outbox")
	if len(pending) < 2 {
		t.Fatalf("%v are pending; want all of the outbox", pending)
	}
	tree := expectKeys(t, "a migration", pending[0], "set", "schema", "table", "version", "name", "applied")
	if tree["set"] != "outbox" || tree["schema"] != "public" || tree["table"] != "outbox" || tree["version"] != 1. || tree["applied"] != false {
		t.Errorf("the first that is pending is %v", tree)
	}
	if applied := list("--only", "outbox"); len(applied) != len(pending) || applied[0].(map[string]any)["applied"] != true {
		t.Errorf("%v were applied; want those that were pending", applied)
	}
	for _, left := range [][]any{list("--dry-run", "--only", "outbox"), list("--only", "outbox")} {
		if left == nil || len(left) > 0 {
			t.Errorf("%v are left, which is no empty array", left)
		}
	}
	execute(t, "migrate", "--print", "--output", "json", "--config", file).expect(t, 2, nil, words{"print", "output"})
}

func TestMigrateOnlyTheInbox(t *testing.T) {
	db := pgtest.New(t)
	file := configure(t, db)
	dry := execute(t, "migrate", "--only", "inbox", "--dry-run", "--config", file)
	dry.expect(t, 0, words{"pending: 1 inbox"}, nil)
	if strings.Contains(dry.stdout, "outbox") {
		t.Errorf("--only inbox speaks of the outbox\n%s", dry)
	}
	execute(t, "migrate", "--only", "inbox", "--config", file).expect(t, 0, words{"applied: 1 inbox"}, nil)
	if n := db.Int(t, `SELECT count(*) FROM pg_class WHERE relname LIKE 'outbox%'`); n != 0 {
		t.Error("--only inbox made an outbox")
	}
	execute(t, "migrate", "--only", "inbox", "--config", file).expect(t, 0, words{"nothing is pending"}, nil)
	both := execute(t, "migrate", "--dry-run", "--config", file)
	both.expect(t, 0, words{"pending: 1 outbox"}, nil)
	if strings.Contains(both.stdout, "inbox") {
		t.Errorf("the inbox is pending still\n%s", both)
	}
}

func TestStatusDocument(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, key, created_at) SELECT 'orders', 'k', now() - interval '1 hour' FROM generate_series(1, 3)`,
		`INSERT INTO outbox (topic, published_at) VALUES ('published', now())`,
		`INSERT INTO outbox (topic, available_at) VALUES ('later', now() + interval '1 hour'), ('due', now() - interval '1 minute')`)
	file := configure(t, db)
	got := execute(t, "status", "--output", "json", "--config", file)
	got.expect(t, 0, words{}, nil) // a broker that is away is no reason to fail
	document := expectKeys(t, "status", decode[any](t, got), "mode", "database", "sinks", "topics", "slot")
	if document["mode"] != "poll" || document["slot"] != nil {
		t.Errorf("mode %v, slot %v", document["mode"], document["slot"])
	}
	if database := expectKeys(t, "database", document["database"], "up", "error"); database["up"] != true || database["error"] != "" {
		t.Errorf("database %v", database)
	}
	sinks := document["sinks"].([]any)
	if len(sinks) != 1 {
		t.Fatalf("sinks %v", sinks)
	}
	sink := expectKeys(t, "sink", sinks[0], "name", "up", "error")
	if sink["name"] != "main" || sink["up"] != false || !strings.Contains(sink["error"].(string), "connection refused") {
		t.Errorf("sink %v", sink)
	}
	ages := map[string][2]float64{}
	for _, topic := range document["topics"].([]any) {
		tree := expectKeys(t, "topic", topic, "topic", "pending", "oldest_pending_age_seconds", "parked_keys", "dead_letters")
		ages[tree["topic"].(string)] = [2]float64{tree["pending"].(float64), tree["oldest_pending_age_seconds"].(float64)}
	}
	for topic, want := range map[string][2]float64{"orders": {3, 3600}, "due": {1, 60}} {
		if got := ages[topic]; got[0] != want[0] || got[1] < want[1] || got[1] > want[1]+60 {
			t.Errorf("%s: pending and age %v, want %v", topic, got, want)
		}
	}
	if _, ok := ages["published"]; ok {
		t.Error("a topic without pending rows is listed")
	}
	execute(t, "status", "--config", file).expect(t, 0, words{"mode", "poll", "database", "up", "sink main", "down: ", "orders", "3"}, nil)
}

func TestStatusWithoutDatabase(t *testing.T) {
	got := execute(t, "status", "--output", "json", "--config", write(t, minimal))
	got.expect(t, 1, words{}, nil)
	document := expectKeys(t, "status", decode[any](t, got), "mode", "database", "sinks", "topics", "slot")
	database := document["database"].(map[string]any)
	if database["up"] != false || !strings.Contains(database["error"].(string), "check that the server") {
		t.Errorf("database %v", database)
	}
	if topics, ok := document["topics"].([]any); !ok || len(topics) != 0 {
		t.Errorf("topics %v, want []", document["topics"])
	}
	execute(t, "status", "--config", write(t, minimal)).expect(t, 1, words{"database   down: ", "sink main  down: "}, nil)
}

func TestCheckDocument(t *testing.T) {
	db := pgtest.NewOutbox(t)
	got := execute(t, "check", "--output", "json", "--config", configure(t, db))
	got.expect(t, 1, words{}, nil)
	levels := map[any]int{}
	for _, finding := range decode[[]any](t, got) {
		tree := expectKeys(t, "finding", finding, "level", "subject", "message", "remedy")
		levels[tree["level"]]++
		if remedy := tree["remedy"].(string); (tree["level"] == "ok") != (remedy == "") || tree["subject"] == "" || tree["message"] == "" {
			t.Errorf("finding %v", tree)
		}
	}
	if levels["error"] != 1 || levels["ok"] < 4 || levels["warning"] != 0 {
		t.Errorf("levels %v\n%s", levels, got)
	}
	text := execute(t, "check", "--config", configure(t, db))
	text.expect(t, 1, words{"ok       database: PostgreSQL", "error    sink main: "}, nil)
	if n := strings.Count(text.stdout, "\n"); n != levels["error"]+levels["ok"] {
		t.Errorf("%d lines, want one per finding\n%s", n, text)
	}
}

func TestPruneCommand(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `INSERT INTO outbox (topic, published_at) SELECT 't', now() - interval '2 days' FROM generate_series(1, 2500)`,
		`INSERT INTO outbox (topic, published_at) VALUES ('t', now() - interval '1 hour')`, `INSERT INTO outbox (topic) VALUES ('t')`)
	execute(t, "prune", "--config", configure(t, db)).expect(t, 0, words{"removed 2500 published rows"}, nil)
	if n := db.Int(t, `SELECT count(*) FROM outbox`); n != 2 {
		t.Errorf("%d rows are left, want 2", n)
	}
}

// insertInbox makes an inbox with rows that are too old, and with one that is
// not.
func insertInbox(t *testing.T, db *pgtest.Database, file string) {
	t.Helper()
	execute(t, "migrate", "--only", "inbox", "--config", file).expect(t, 0, words{"applied: 1 inbox"}, nil)
	db.Exec(t, `INSERT INTO inbox (consumer, message_id, processed_at) SELECT 'mail', gen_random_uuid(), now() - interval '16 days' FROM generate_series(1, 40)`,
		`INSERT INTO inbox (consumer, message_id, processed_at) VALUES ('mail', gen_random_uuid(), now() - interval '14 days')`)
}

func TestPruneInbox(t *testing.T) {
	db := pgtest.NewOutbox(t)
	file := configure(t, db)
	insertInbox(t, db, file)
	execute(t, "prune", "--config", file).expect(t, 0, words{"removed 0 published rows", "removed 40 inbox rows older than 360h0m0s"}, nil)
	if n := db.Int(t, `SELECT count(*) FROM inbox`); n != 1 {
		t.Errorf("%d inbox rows are left, want 1", n)
	}
}

func TestPruneWhereThereIsNoOutbox(t *testing.T) {
	db := pgtest.New(t)
	file := configure(t, db)
	execute(t, "prune", "--config", file).expect(t, 1, nil, words{"outbox", "relay migrate"})
	insertInbox(t, db, file)
	execute(t, "prune", "--config", file).expect(t, 0, words{"removed 40 inbox rows"}, nil)
}

func TestPruneWhatIsKeptForEver(t *testing.T) {
	db := pgtest.New(t)
	text := fmt.Sprintf("database: {url: %q}\nsinks: {main: {kafka: {brokers: [\"127.0.0.1:1\"]}}}\n", db.URL)
	outbox := write(t, text+"outbox: {retention: 0s}\n")
	execute(t, "prune", "--config", outbox).expect(t, 0, words{"there is no inbox here"}, nil)
}
