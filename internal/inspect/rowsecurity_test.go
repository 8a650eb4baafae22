package inspect_test

import (
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/inspect"
	"github.com/outboxrelay/relay/internal/pgtest"
)

func TestRowSecurity(t *testing.T) {
	const (
		hides    = `grants on "public"."outbox": row-level security is on and no policy lets this role SELECT, UPDATE, DELETE: hidden rows are never published…CREATE POLICY "outbox_relay" ON "public"."outbox" TO "ROLE"…ALTER ROLE "ROLE" BYPASSRLS`
		decides  = `grants on "public"."outbox": row-level security decides which rows this role may `
		readable = `; CREATE POLICY readable ON outbox FOR SELECT USING (true); CREATE POLICY deletable ON outbox FOR DELETE USING (true)`
	)
	for _, test := range []struct {
		name     string
		sql      string // after row-level security was turned on for the outbox; ROLE is the relay's
		change   func(*config.Config)
		errors   []string
		warnings []string
	}{
		{name: "no policy", errors: []string{hides}},
		{name: "a policy for somebody else", sql: `CREATE POLICY p ON outbox TO postgres USING (true)`, errors: []string{hides}},
		{name: "a policy for inserts", sql: `CREATE POLICY p ON outbox FOR INSERT WITH CHECK (true)`, errors: []string{hides}},
		{name: "a policy for the role", sql: `CREATE POLICY p ON outbox TO ROLE USING (true)`},
		{name: "a policy for everybody", sql: `CREATE POLICY p ON outbox USING (true) WITH CHECK (true)`},
		{name: "BYPASSRLS", sql: `ALTER ROLE ROLE BYPASSRLS`},
		{name: "turned off", sql: `ALTER TABLE outbox DISABLE ROW LEVEL SECURITY`},
		{
			name: "a policy with an expression", sql: `CREATE POLICY p ON outbox USING (topic LIKE 'orders%')`,
			warnings: []string{decides + `SELECT, UPDATE, DELETE…CREATE POLICY "outbox_relay"`},
		},
		{
			name: "beside a policy that lets all pass", sql: `CREATE POLICY p ON outbox USING (topic LIKE 'orders%'); CREATE POLICY q ON outbox TO ROLE USING (true)`,
		},
		{
			name: "reading only", sql: `SELECT` + readable, // FOR UPDATE reads nothing then
			errors: []string{`grants on "public"."outbox": row-level security is on and no policy lets this role UPDATE:…CREATE POLICY`},
		},
		{
			name: "marks that are refused", sql: `CREATE POLICY p ON outbox FOR UPDATE USING (true) WITH CHECK (published_at IS NULL)` + readable,
			warnings: []string{decides + `UPDATE:…CREATE POLICY`},
		},
		{
			name: "a restriction", sql: `CREATE POLICY p ON outbox USING (true); CREATE POLICY q ON outbox AS RESTRICTIVE USING (topic <> 'secret')`,
			warnings: []string{decides + `SELECT, UPDATE, DELETE…ALTER ROLE "ROLE" BYPASSRLS, as a superuser; or take the restrictive policies off`},
		},
		{
			name: "a restriction of nothing", sql: `CREATE POLICY p ON outbox USING (true); CREATE POLICY q ON outbox AS RESTRICTIVE USING (true)`,
		},
		{
			name:   "no deleting, and none is needed",
			sql:    `CREATE POLICY p ON outbox FOR SELECT USING (true); CREATE POLICY q ON outbox FOR UPDATE USING (true)`,
			change: func(c *config.Config) { c.Outbox.Retention = 0 },
		},
		{
			name: "on the tables beside it",
			sql:  `ALTER TABLE outbox DISABLE ROW LEVEL SECURITY; ALTER TABLE outbox_parked ENABLE ROW LEVEL SECURITY; ALTER TABLE outbox_dead_letters ENABLE ROW LEVEL SECURITY`,
			errors: []string{
				`grants on "public"."outbox_parked": row-level security is on and no policy lets this role SELECT, INSERT, UPDATE, DELETE: hidden keys are not held back…CREATE POLICY "outbox_parked_relay" ON "public"."outbox_parked" TO "ROLE"`,
				`grants on "public"."outbox_dead_letters": row-level security is on and no policy lets this role SELECT, INSERT, UPDATE: messages cannot be moved there…CREATE POLICY "outbox_dead_letters_relay"`,
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			role := newRole(t, db)
			inRole := strings.NewReplacer("ROLE ROLE", "ROLE "+role, "TO ROLE", "TO "+role, `"ROLE"`, `"`+role+`"`)
			db.Exec(t, "GRANT ALL ON outbox, outbox_migrations, outbox_parked, outbox_dead_letters TO "+role, "ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
			if test.sql != "" {
				db.Exec(t, inRole.Replace(test.sql))
			}
			c := settings(t, db.URL, role)
			if test.change != nil {
				test.change(c)
			}
			for _, want := range [][]string{test.errors, test.warnings} {
				for i := range want {
					want[i] = inRole.Replace(want[i])
				}
			}
			findings := look(t, c)
			expect(t, findings, inspect.Error, test.errors...)
			expect(t, findings, inspect.Warning, test.warnings...)

			// What it advises helps.
			for _, f := range append(of(findings, inspect.Error), of(findings, inspect.Warning)...) {
				advice, _, _ := strings.Cut(f.Remedy, ";")
				db.Exec(t, strings.TrimSuffix(advice, ", as a superuser"))
			}
			findings = look(t, c)
			expect(t, findings, inspect.Error)
			expect(t, findings, inspect.Warning)
		})
	}
}

// Owners see everything, unless the table is told otherwise.
func TestRowSecurityForTheOwner(t *testing.T) {
	db := pgtest.NewOutbox(t)
	role := newRole(t, db)
	db.Exec(t, "GRANT ALL ON outbox, outbox_migrations, outbox_parked, outbox_dead_letters TO "+role,
		"ALTER TABLE outbox OWNER TO "+role, "ALTER TABLE outbox ENABLE ROW LEVEL SECURITY")
	c := settings(t, db.URL, role)
	expect(t, look(t, c), inspect.Error)
	db.Exec(t, "ALTER TABLE outbox FORCE ROW LEVEL SECURITY")
	expect(t, look(t, c), inspect.Error, `grants on "public"."outbox": row-level security is on and no policy…`)
}
