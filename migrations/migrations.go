// Package migrations holds the database schema as forward-only SQL, in one set
// for the outbox and one for the inbox, and applies it.
//
// Each migration runs in a transaction of its own, under an advisory lock that
// is taken for the transaction (so it works through a pooler), and is recorded
// in that transaction in the table <table>_migrations. Applying twice, or
// from two places at once, does nothing the second time. A released migration
// never changes.
package migrations

import (
	"cmp"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"text/template"

	"github.com/jackc/pgx/v5"
)

//go:embed outbox/*.sql inbox/*.sql
var files embed.FS

// Migration is one step of a schema.
type Migration struct {
	Version int
	Name    string
	// SQL is complete, with the target's names quoted in it.
	SQL string
}

// Set names migrations that belong together; each set has a folder.
type Set string

// The sets.
const (
	Outbox Set = "outbox"
	Inbox  Set = "inbox"
)

// Target names the table that a schema is made for.
type Target struct {
	Schema, Table string
	// Set is what the table is; empty means Outbox.
	Set Set
}

func (t Target) set() Set { return cmp.Or(t.Set, Outbox) }

// names is what the SQL templates see: identifiers, quoted.
type names struct {
	target Target
	Quote  string
}

func (t Target) identifier(suffix string) string {
	return pgx.Identifier{t.Schema, t.Table + suffix}.Sanitize()
}

// Outbox is the table's name with its schema.
func (n names) Outbox() string { return n.target.identifier("") }

// Literal is a name as a string constant, to be cast to regclass, say.
func (n names) Literal(name string) string { return literal(name) }

// Publish is the SQL function's name with its schema.
func (n names) Publish() string { return n.target.identifier("_publish") }

// Table is the table's name and a suffix, with its schema.
func (n names) Table(suffix string) string { return n.target.identifier(suffix) }

// Name is the table's name and a suffix, without the schema.
func (n names) Name(suffix string) string {
	return pgx.Identifier{n.target.Table + suffix}.Sanitize()
}

// Migrations returns all steps for the target in ascending version.
func (t Target) Migrations() ([]Migration, error) {
	folder := string(t.set())
	entries, err := fs.ReadDir(files, folder) // sorted by name
	if err != nil {
		return nil, err
	}
	data := names{target: t, Quote: "$sql$"}
	for i := 0; strings.Contains(t.Schema+t.Table, data.Quote); i++ {
		data.Quote = fmt.Sprintf("$sql%d$", i)
	}
	migrations := make([]Migration, 0, len(entries))
	for _, entry := range entries {
		number, name, _ := strings.Cut(strings.TrimSuffix(entry.Name(), ".sql"), "_")
		version, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("migration file %s: its name must begin with a number: %w", entry.Name(), err)
		}
		parsed, err := template.ParseFS(files, folder+"/"+entry.Name())
		if err != nil {
			return nil, err
		}
		var sql strings.Builder
		if err := parsed.Execute(&sql, data); err != nil {
			return nil, err
		}
		migrations = append(migrations, Migration{Version: version, Name: name, SQL: sql.String()})
	}
	return migrations, nil
}

// Print writes the SQL of all migrations, each in its transaction and with the
// statement that records it, for psql or for another migration tool. Run on a
// fresh database it leaves exactly what Apply leaves.
func (t Target) Print(w io.Writer) error {
	migrations, err := t.Migrations()
	if err != nil {
		return err
	}
	for _, m := range migrations {
		_, err := fmt.Fprintf(w, "-- Outbox Relay: migration %d (%s) of %s\nBEGIN;\n%s;\n%s;\n%s;\n\n%s\n%s;\nCOMMIT;\n\n",
			m.Version, m.Name, printable(t.identifier("")), t.lockSQL(), boundsSQL(longestLockWait), t.prepareSQL(), m.SQL, t.recordSQL(m))
		if err != nil {
			return err
		}
	}
	return nil
}

// printable is a name that cannot end the comment it stands in.
func printable(name string) string {
	return strings.NewReplacer("\n", " ", "\r", " ").Replace(name)
}
