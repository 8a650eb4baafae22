package e2e_test

import (
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// catalogSQL describes everything that a migration makes, a line each.
const catalogSQL = `
SELECT string_agg(line, E'\n' ORDER BY line) FROM (
    SELECT format('column %s.%s %s null:%s default:%s identity:%s comment:%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
                  pg_get_expr(d.adbin, d.adrelid), a.attidentity, col_description(c.oid, a.attnum)) AS line
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL SELECT format('relation %s %s %s %s', relname, relkind, reloptions, obj_description(oid)) FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL SELECT format('constraint %s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT format('trigger %s', pg_get_triggerdef(oid)) FROM pg_trigger WHERE NOT tgisinternal
) x`

// migrator returns a relay that only has commands run.
func migrator(t *testing.T, database *scenario.Database, settings scenario.Settings) *scenario.Relay {
	t.Helper()
	return scenario.NewRelay(t, "migrator", scenario.Config{
		"database": scenario.Config{"url": database.URL},
		"sinks":    scenario.Config{"main": scenario.Config{"kafka": scenario.Config{"brokers": kafkaBrokers()}}},
	}.With(settings))
}

func expect(t *testing.T, result scenario.Result, code int, stdout string) {
	t.Helper()
	if result.Code != code || !strings.Contains(result.Stdout, stdout) {
		t.Errorf("want exit code %d and %q: %s", code, stdout, result)
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	database := scenario.NewDatabase(t)
	relay := migrator(t, database, nil)
	expect(t, relay.Command("migrate", "--dry-run"), 0, "pending: 1 ")
	if n := scenario.One[int](t, database, `SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace`); n != 0 {
		t.Errorf("migrate --dry-run made %d relations", n)
	}
	expect(t, relay.Command("migrate"), 0, "applied: 1 ")
	once := scenario.One[string](t, database, catalogSQL)
	expect(t, relay.Command("migrate"), 0, "nothing is pending")
	expect(t, relay.Command("migrate", "--dry-run"), 0, "nothing is pending")
	if twice := scenario.One[string](t, database, catalogSQL); twice != once {
		t.Errorf("the second migrate changed the schema from\n%s\nto\n%s", once, twice)
	}
}

func TestMigrateFromFourProcessesAtOnce(t *testing.T) {
	t.Parallel()
	database := scenario.NewDatabase(t)
	relay := migrator(t, database, nil)
	results := make([]scenario.Result, 4)
	var group sync.WaitGroup
	for i := range results {
		group.Go(func() { results[i] = relay.Command("migrate") })
	}
	group.Wait()
	applied := 0
	for _, result := range results {
		if result.Code != 0 {
			t.Errorf("migrate beside others: %s", result)
		}
		applied += strings.Count(result.Stdout, "applied: 1 outbox")
	}
	if applied != 1 {
		t.Errorf("the first migration was applied %d times, want once", applied)
	}
	expect(t, relay.Command("migrate"), 0, "nothing is pending")
}

func TestPrintedMigrationsThroughPsqlMakeTheSameSchema(t *testing.T) {
	t.Parallel()
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Skip("needs psql, of the package postgresql-client")
	}
	migrated, printed := scenario.NewDatabase(t), scenario.NewDatabase(t)
	expect(t, migrator(t, migrated, nil).Command("migrate"), 0, "applied: 1 ")

	relay := migrator(t, printed, nil)
	sql := relay.Command("migrate", "--print")
	expect(t, sql, 0, "CREATE TABLE")
	command := exec.CommandContext(t.Context(), psql, "-X", "-v", "ON_ERROR_STOP=1", printed.URL)
	command.Stdin = strings.NewReader(sql.Stdout)
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("psql: %v\n%s", err, output)
	}
	want, got := scenario.One[string](t, migrated, catalogSQL), scenario.One[string](t, printed, catalogSQL)
	if got != want {
		t.Errorf("migrate --print made\n%s\nmigrate made\n%s", got, want)
	}
	expect(t, relay.Command("migrate"), 0, "nothing is pending")
}

func TestNamesThatNeedQuotes(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, scenario.Settings{
		"outbox.schema": `My "odd" Schema`, "outbox.table": `Out Box's.Ünïcode`, "outbox.batch_size": 20,
	})
	fleet := stage.StartFleet(2)
	if result := fleet[0].Command("check"); result.Code != 0 {
		t.Errorf("check: %s", result)
	}
	load := stage.StartLoad(scenario.Workload{Notify: true})
	kills := stage.KillLoop(fleet, 3*time.Second)
	load.Stop()
	stage.Drain(20 * time.Second)
	fleet.Stop()
	expect(t, fleet[0].Command("status"), 0, "nothing is pending")
	stage.Verify(kills * stage.Config.InFlight())
	expect(t, fleet[0].Command("migrate"), 0, "nothing is pending")
}
