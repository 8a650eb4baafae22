package outbox_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/outbox"
)

// insertJSON inserts in a transaction of its own.
func insertJSON(t *testing.T, conn *pgx.Conn, messages ...outbox.Message) error {
	t.Helper()
	return pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := outbox.Insert(t.Context(), tx, messages...)
		return err
	})
}

func TestJSONGoesIntoItsColumn(t *testing.T) {
	t.Parallel()
	url := database(t, defaultTarget)
	conn := connect(t, url)
	execute(t, conn, "DROP TRIGGER outbox_payload_bytes ON outbox") // shows what was inserted
	err := insertJSON(t, conn, outbox.Message{Topic: "a", JSON: `C:\temp "x"`}, outbox.Message{Topic: "b", Payload: []byte("1")}, outbox.Message{Topic: "c", JSONText: ` 1.0 `}, outbox.Message{Topic: "d"})
	if err != nil {
		t.Fatal(err)
	}
	got := rows(t, conn, "outbox")
	if got[0].PayloadJSON == nil || *got[0].PayloadJSON != `"C:\\temp \"x\""` || got[1].PayloadJSON != nil ||
		got[2].PayloadJSON == nil || *got[2].PayloadJSON != ` 1.0 ` || got[3].PayloadJSON != nil || got[3].Payload != nil {
		t.Errorf("rows %+v", got)
	}

	// What the answer of hasJSONSQL keeps out of it, in this session.
	execute(t, conn, "TRUNCATE outbox")
	latin := connect(t, url+"&client_encoding=LATIN1")
	if err := insertJSON(t, latin, outbox.Message{Topic: "a", JSON: "Zoë €"}); err != nil {
		t.Fatal(err)
	}
	if got := rows(t, conn, "outbox")[0]; got.PayloadJSON != nil || string(got.Payload) != `"Zoë €"` {
		t.Errorf("row %+v", got)
	}
}

// TestJSONOfATableThatIsNotMigrated: nothing fails, before, while and after the
// table is migrated; a connection finds out at its first JSON.
func TestJSONOfATableThatIsNotMigrated(t *testing.T) {
	t.Parallel()
	url := database(t, defaultTarget)
	admin := connect(t, url)
	execute(t, admin, "DROP TRIGGER outbox_payload_bytes ON outbox")
	execute(t, admin, "ALTER TABLE outbox DROP COLUMN payload_json")
	conn := connect(t, url)
	place := func(conn *pgx.Conn) {
		t.Helper()
		if err := insertJSON(t, conn, outbox.Message{Topic: "t", JSON: 1}); err != nil {
			t.Fatal(err)
		}
	}
	count := func(want string) {
		t.Helper()
		var got string
		if err := admin.QueryRow(t.Context(), "SELECT string_agg(CASE WHEN payload IS NULL THEN 'null' ELSE convert_from(payload, 'UTF8') END, ' ' ORDER BY id) FROM outbox").Scan(&got); err != nil || got != want {
			t.Errorf("payloads %s, want %s (%v)", got, want, err)
		}
	}
	place(conn)
	execute(t, admin, "ALTER TABLE outbox ADD COLUMN payload_json json")
	place(conn)
	count("1 1")
	fresh := connect(t, url)
	place(fresh)
	count("1 1 null")

	// A restore of an older backup costs a connection one transaction.
	execute(t, admin, "ALTER TABLE outbox DROP COLUMN payload_json")
	if err := insertJSON(t, fresh, outbox.Message{Topic: "t", JSON: 1}); err == nil || !strings.Contains(err.Error(), "payload_json") {
		t.Errorf("error %v", err)
	}
	place(fresh)
	count("1 1 null 1")
}

// TestJSONWithoutItsGrant: who may write payload alone goes on doing that.
func TestJSONWithoutItsGrant(t *testing.T) {
	t.Parallel()
	conn := connect(t, database(t, defaultTarget))
	role := "role_" + strings.ReplaceAll(outbox.NewUUID().String(), "-", "")
	execute(t, conn, "CREATE ROLE "+role)
	execute(t, conn, "GRANT INSERT (message_id, topic, key, type, payload, content_type, headers, available_at), SELECT (id) ON outbox TO "+role)
	t.Cleanup(func() {
		execute(t, conn, "DROP OWNED BY "+role)
		execute(t, conn, "DROP ROLE "+role)
	})
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), "SET LOCAL ROLE "+role); err != nil {
		t.Fatal(err)
	}
	if _, err := outbox.Insert(t.Context(), tx, outbox.Message{Topic: "t", JSON: 1}); err != nil {
		t.Error(err)
	}
}
