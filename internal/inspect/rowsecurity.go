package inspect

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/source"
)

const (
	// rowSecuritySQL is false for superusers, roles with BYPASSRLS, and owners
	// unless the table forces it on them. It is false too where there is no table.
	rowSecuritySQL = `SELECT coalesce(row_security_active(to_regclass($1)), false), current_user::text`

	// policiesSQL are the policies that apply to the role. An expression that is
	// just true lets every row pass; others cannot be judged without the rows. A
	// policy without WITH CHECK checks new rows by its USING.
	policiesSQL = `
SELECT p.polcmd::text, p.polpermissive,
    coalesce(pg_get_expr(p.polqual, p.polrelid), 'true') = 'true',
    coalesce(pg_get_expr(p.polwithcheck, p.polrelid), pg_get_expr(p.polqual, p.polrelid), 'true') = 'true'
FROM pg_policy p
WHERE p.polrelid = to_regclass($1)
  AND (0 = ANY (p.polroles) OR EXISTS (SELECT FROM unnest(p.polroles) AS r WHERE r <> 0 AND pg_has_role(r, 'USAGE')))`
)

// querier is what reads; a connection or a pool.
type querier interface {
	Query(ctx context.Context, sql string, arguments ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, arguments ...any) pgx.Row
}

// policy is one row of policiesSQL.
type policy struct {
	command    string // as pg_policy has it: r, a, w, d, or * for all
	permissive bool
	using      bool // lets all rows pass
	check      bool // lets all new rows pass
}

// view is how much row-level security lets a role do.
type view int

const (
	none view = iota // no row
	some             // those that an expression decides about
	all              // every row
)

// RowSecurity finds out whether row-level security hides rows of the outbox, or
// of the tables beside it, from the role of the connection. PostgreSQL says
// nothing about hidden rows: they are just not there. No finding means that all
// is seen.
func RowSecurity(ctx context.Context, db querier, c *config.Config) ([]Finding, error) {
	privileges := []string{"SELECT", "UPDATE"}
	if deletes(c) {
		privileges = append(privileges, "DELETE")
	}
	findings, err := rowSecurity(ctx, db, c, "", privileges)
	if err != nil {
		return nil, err
	}
	for _, table := range beside {
		more, err := rowSecurity(ctx, db, c, table.suffix, table.privileges)
		if err != nil {
			return nil, err
		}
		findings = append(findings, more...)
	}
	return findings, nil
}

// consequence says what hidden rows of a table mean.
var consequence = map[string]string{
	"":              "hidden rows are never published, and nothing else tells",
	"_parked":       "hidden keys are not held back, and their messages may overtake",
	"_dead_letters": "messages cannot be moved there",
}

func rowSecurity(ctx context.Context, db querier, c *config.Config, suffix string, privileges []string) ([]Finding, error) {
	name := pgx.Identifier{c.Outbox.Schema, c.Outbox.Table + suffix}.Sanitize()
	var active bool
	var role string
	if err := db.QueryRow(ctx, rowSecuritySQL, name).Scan(&active, &role); err != nil || !active {
		return nil, err
	}
	rows, err := db.Query(ctx, policiesSQL, name)
	if err != nil {
		return nil, err
	}
	policies, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p policy, err error) {
		return p, row.Scan(&p.command, &p.permissive, &p.using, &p.check)
	})
	if err != nil {
		return nil, err
	}
	seen := all
	var lacking []string
	for _, privilege := range privileges {
		v := judge(policies, privilege)
		if v != all {
			lacking = append(lacking, privilege)
		}
		seen = min(seen, v)
	}
	if seen == all {
		return nil, nil
	}
	role = pgx.Identifier{role}.Sanitize()
	remedy := fmt.Sprintf("CREATE POLICY %s ON %s TO %s USING (true) WITH CHECK (true); or, as a superuser, ALTER ROLE %s BYPASSRLS",
		pgx.Identifier{c.Outbox.Table + suffix + "_relay"}.Sanitize(), name, role, role)
	if slices.ContainsFunc(policies, func(p policy) bool { return !p.permissive }) {
		remedy = fmt.Sprintf("ALTER ROLE %s BYPASSRLS, as a superuser; or take the restrictive policies off this role", role)
	}
	finding := Finding{Level: Warning, Subject: "grants on " + name, Remedy: remedy,
		Message: fmt.Sprintf("row-level security decides which rows this role may %s: %s", strings.Join(lacking, ", "), consequence[suffix])}
	if seen == none {
		finding.Level = Error
		finding.Message = fmt.Sprintf("row-level security is on and no policy lets this role %s: %s", strings.Join(lacking, ", "), consequence[suffix])
	}
	return []Finding{finding}, nil
}

// judge says what the policies let the role do.
func judge(policies []policy, privilege string) view {
	letter := map[string]string{"SELECT": "r", "INSERT": "a", "UPDATE": "w", "DELETE": "d"}[privilege]
	permitted, restricted := none, false
	for _, p := range policies {
		if p.command != "*" && p.command != letter {
			continue
		}
		open := p.using
		switch privilege {
		case "INSERT":
			open = p.check
		case "UPDATE":
			open = p.using && p.check
		}
		switch {
		case !p.permissive:
			restricted = restricted || !open
		case open:
			permitted = all
		default:
			permitted = max(permitted, some)
		}
	}
	if restricted {
		return min(permitted, some)
	}
	return permitted
}

// deletes reports whether the configuration makes the relay delete rows.
func deletes(c *config.Config) bool {
	policies := []route.Policy{c.Failures.Policy}
	for _, r := range c.Routes {
		policies = append(policies, r.OnFailure)
	}
	return c.Outbox.OnPublished == source.Delete || c.Outbox.Retention > 0 ||
		slices.Contains(policies, route.DeadLetter) || slices.Contains(policies, route.Skip)
}
