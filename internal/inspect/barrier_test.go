package inspect_test

import (
	"testing"

	"github.com/outboxrelay/relay/internal/inspect"
	"github.com/outboxrelay/relay/internal/pgtest"
)

const revokeMessages = `DO $$ BEGIN EXECUTE (SELECT string_agg('REVOKE EXECUTE ON FUNCTION ' || oid::regprocedure || ' FROM PUBLIC', '; ') FROM pg_proc WHERE proname = 'pg_logical_emit_message'); END $$`

func TestFlushBarrier(t *testing.T) {
	const positions = `REVOKE EXECUTE ON FUNCTION pg_current_wal_flush_lsn() FROM PUBLIC`
	for name, test := range map[string]struct {
		sql  []string
		want string
	}{
		"no positions": {[]string{positions}, "flush barrier: flushes the server's log after each claim…permission denied for function pg_current_wal_flush_lsn"},
		"no messages":  {[]string{revokeMessages}, "flush barrier: compares positions…; by a row that is taken back…permission denied for function pg_logical_emit_message"},
		"neither":      {[]string{positions, revokeMessages}, "flush barrier: flushes the server's log after each claim…; by a row that is taken back"},
		"wal_level": {[]string{
			`SET allow_system_table_mods = on`, `DELETE FROM pg_proc WHERE proname = 'pg_current_wal_insert_lsn'`,
			`CREATE FUNCTION pg_catalog.pg_current_wal_insert_lsn() RETURNS pg_lsn LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'wal_level must be set to ''logical''' USING ERRCODE = '55000'; END $$`,
			`RESET allow_system_table_mods`,
		}, "flush barrier: flushes the server's log after each claim…wal_level must be set to 'logical'"},
	} {
		t.Run(name, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, test.sql...)
			role := newRole(t, db)
			db.Exec(t, "GRANT ALL ON outbox, outbox_migrations, outbox_parked, outbox_dead_letters TO "+role)
			findings := look(t, settings(t, db.URL, role))
			expect(t, findings, inspect.Error)
			found := false
			for _, f := range of(findings, inspect.OK) {
				found = found || like(f.Subject+": "+f.Message, test.want)
			}
			if !found {
				t.Errorf("no finding says %q: %+v", test.want, findings)
			}
			if n := db.Int(t, `SELECT count(*) FROM outbox_parked`); n != 0 {
				t.Errorf("%d rows are left in outbox_parked", n)
			}
		})
	}
}

// Somebody has to let the relay write something.
func TestFlushBarrierThatCannotFlush(t *testing.T) {
	db := pgtest.NewOutbox(t)
	role := newRole(t, db)
	db.Exec(t, "GRANT ALL ON outbox, outbox_migrations, outbox_parked, outbox_dead_letters TO "+role, "REVOKE INSERT ON outbox_parked FROM "+role, revokeMessages)
	findings := look(t, settings(t, db.URL, role))
	expect(t, findings, inspect.Error,
		`grants on "public"."outbox_parked": missing: INSERT…`,
		`flush barrier: nothing can be written to flush the server's log…pg_logical_emit_message…outbox_parked… -> GRANT INSERT ON "public"."outbox_parked" TO "`+role+`"`)
}
