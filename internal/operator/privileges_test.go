package operator

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
)

// documentedGrants are what docs/operations.md grants to whoever is on call.
func documentedGrants(t *testing.T, schema, role string) []string {
	t.Helper()
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	grants := regexp.MustCompile(`(?m)^GRANT [^;]* TO oncall;`).FindAllString(string(page), -1)
	if len(grants) != 5 {
		t.Fatalf("%d grants are documented, want those on the schema and on four tables: %q", len(grants), grants)
	}
	for i := range grants {
		grants[i] = strings.NewReplacer("messaging", schema, "TO oncall;", "TO "+role).Replace(grants[i])
	}
	return grants
}

// newRole returns a role that may log in and do nothing else, and its URL.
func newRole(t *testing.T, db *pgtest.Database) (role, roleURL string) {
	t.Helper()
	role = fmt.Sprintf("oncall_%08x", rand.Uint32())
	db.Exec(t, "CREATE ROLE "+role+" LOGIN")
	t.Cleanup(func() {
		if _, err := db.Pool.Exec(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role); err != nil {
			t.Log(err)
		}
	})
	parsed, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	parsed.User = url.User(role)
	return role, parsed.String()
}

func TestDocumentedPrivilegesSuffice(t *testing.T) {
	db := pgtest.New(t)
	db.Migrate(t, "messaging", "outbox")
	fill(t, db, "messaging", "outbox")
	role, roleURL := newRole(t, db)
	inMessaging := func(o *Options) { o.Schema = "messaging" }

	// Without them, the error says what to do.
	_, err := newOperator(t, roleURL, inMessaging).ListParked(t.Context(), ListOptions{}, Parked)
	if err == nil || !strings.Contains(err.Error(), "permission denied") || !strings.Contains(err.Error(), "docs/operations.md") {
		t.Errorf("error %v, want one that names the remedy", err)
	}
	db.Exec(t, documentedGrants(t, "messaging", role)...)
	everyCommand(t, newOperator(t, roleURL, inMessaging))
	if n := db.Int(t, `SELECT count(*) FROM messaging.outbox_audit WHERE db_user = '`+role+`'`); n != 7 {
		t.Errorf("%d records in the audit, want 7", n)
	}

	// And nobody changes or forges what was recorded.
	conn := open(t, roleURL)
	for _, sql := range []string{
		`DELETE FROM messaging.outbox_audit`, `UPDATE messaging.outbox_audit SET os_user = 'x'`,
		`INSERT INTO messaging.outbox_audit (os_user, action, db_user) VALUES ('x', 'x', 'somebody')`,
		`INSERT INTO messaging.outbox_audit (os_user, action, at) VALUES ('x', 'x', now())`,
		`DELETE FROM messaging.outbox_parked`,
	} {
		if _, err := conn.Exec(t.Context(), sql); sqlState(err) != "42501" {
			t.Errorf("%s: error %v, want one of a missing privilege", sql, err)
		}
	}
}
