package main

import (
	"context"
	"testing"
	"time"
)

// A relay that retries by itself is no error of an operator who does so too.
func TestParkedRetryBesideARelay(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		db, file := failures(t)
		relay, err := db.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = relay.Rollback(context.Background()) }()
		// It publishes the message, and with it the entry goes.
		for _, sql := range []string{`DELETE FROM outbox_parked WHERE id = 1`, `UPDATE outbox SET published_at = now() WHERE id = 1`} {
			if _, err := relay.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		ended := make(chan result, 1)
		arguments := []string{"parked", "retry", "--message-id", uid(1), "--message-id", uid(4), "--yes", "--config", file}
		if format == "json" {
			arguments = append(arguments, "--output", "json")
		}
		go func() { ended <- execute(t, arguments...) }()
		deadline := time.Now().Add(20 * time.Second)
		for db.Int(t, `SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE d.datname = current_database() AND NOT granted`)+
			db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 0 {
			if time.Now().After(deadline) {
				t.Fatal("the command does not wait")
			}
			time.Sleep(5 * time.Millisecond)
		}
		if err := relay.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := <-ended; format == "json" {
			r.expect(t, 0, words{uid(4)}, words{uid(1), "was published meanwhile"})
		} else {
			r.expect(t, 0, words{uid(1) + "  was published meanwhile", uid(4), "1 message is tried again"}, nil)
		}
	}
}

// It may also come before the command has looked at all.
func TestParkedRetryAfterARelay(t *testing.T) {
	db, file := failures(t)
	db.Exec(t, `DELETE FROM outbox_parked WHERE id = 1`, `UPDATE outbox SET published_at = now() WHERE id = 1`)
	execute(t, "parked", "retry", "--message-id", uid(1), "--yes", "--config", file).expect(t, 0, words{uid(1) + "  was published meanwhile"}, nil)
	execute(t, "parked", "retry", "--topic", "orders", "--key", "a", "--yes", "--config", file).expect(t, 0, words{uid(1) + "  was published meanwhile"}, nil)
	execute(t, "parked", "skip", "--message-id", uid(1), "--message-id", uid(4), "--yes", "--config", file).expect(t, 0,
		words{uid(1) + "  was published meanwhile", uid(4) + "  moved to the dead letters"}, nil)
	db.Exec(t, `UPDATE outbox SET published_at = now() - interval '1 hour' WHERE id = 1`)
	execute(t, "parked", "retry", "--message-id", uid(1), "--yes", "--config", file).expect(t, 1, nil, words{uid(1) + ": not parked"})
}
