package faults_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/proxy"
	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// databaseFaults are what happens to PostgreSQL and on the way to it.
var databaseFaults = []fault{
	{"sessions terminated", terminateSessions},
	{"server crashes", crashDatabase},
	{"connections cut", cutDatabase},
	{"statement cut in mid-frame", cutStatement},
	{"answer to a statement lost", loseStatementAnswer},
	{"half-open connections", halfOpenDatabase},
	{"slow network", slowDatabase},
	{"transaction commits late", commitLate},
	{"marks fail", failAllMarks},
	{"marks of some keys fail", failSomeMarks},
}

// terminateSessions ends sessions of the relays one at a time: at a claim, while
// its rows are published, and while they are marked.
func terminateSessions(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	const each = 6
	// A mark is over so soon that none would be hit.
	if _, err := p.stage.Database.Pool.Exec(ctx, dawdleSQL(p.stage.Table)); err != nil {
		return 0, p.unlessTogether(err)
	}
	hits := map[string]int{}
	duplicates := 0
	moments := slices.Sorted(maps.Keys(momentSQL))
	err := await(ctx, "sessions to be terminated at each moment of a claim", func(ctx context.Context) (bool, string) {
		state := fmt.Sprint(hits)
		due := slices.DeleteFunc(slices.Clone(moments), func(moment string) bool { return hits[moment] >= each })
		if len(due) == 0 {
			return true, state
		}
		moment := due[random.IntN(len(due))]
		tag, err := p.stage.Database.Pool.Exec(ctx, fmt.Sprintf(terminateSQL, momentSQL[moment]))
		if err != nil {
			return false, fmt.Sprintf("%s (%v)", state, err)
		}
		if tag.RowsAffected() > 0 {
			hits[moment]++
			duplicates += p.batch()
			// The relays go on before the next.
			sleep(ctx, between(random, 0, 200*time.Millisecond))
		}
		return false, state
	})
	p.t.Logf("sessions terminated: %v", hits)
	if _, err := p.stage.Database.Pool.Exec(ctx, `DROP TRIGGER dawdle ON `+p.stage.Table); err != nil {
		return duplicates, p.unlessTogether(err)
	}
	return duplicates, err
}

// terminateSQL ends one session of a relay that is at the moment of a claim.
const terminateSQL = `
SELECT pg_terminate_backend(pid) FROM (
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outbox-relay' AND %s LIMIT 1
) s`

// momentSQL tells what a session is at.
var momentSQL = map[string]string{
	"claim":   `state = 'active' AND query !~ '(SET published_at = clock_timestamp|DELETE FROM)'`,
	"publish": `state LIKE 'idle in transaction%'`,
	"mark":    `state = 'active' AND query ~ '(SET published_at = clock_timestamp|DELETE FROM)'`,
}

// dawdleSQL makes marking take some time.
func dawdleSQL(table string) string {
	return `
CREATE OR REPLACE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END';
CREATE OR REPLACE TRIGGER dawdle BEFORE UPDATE OF published_at OR DELETE ON ` + table + ` FOR EACH STATEMENT EXECUTE FUNCTION dawdle()`
}

// unlessTogether drops an error that another fault, which happens at the same
// time, is the reason for.
func (p *play) unlessTogether(err error) error {
	if p.together {
		return nil
	}
	return err
}

// crashDatabase ends the server without a checkpoint and starts it again.
func crashDatabase(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	if err := p.postgres.Stop(servers.Immediate); err != nil {
		return 0, err
	}
	sleep(ctx, between(random, 0, time.Second))
	if err := p.postgres.Start(ctx); err != nil {
		return 0, err
	}
	return p.inFlight(), p.flows(ctx)
}

func cutDatabase(ctx context.Context, p *play, _ *rand.Rand) (int, error) {
	if p.database.Cut() == 0 && !p.together {
		return 0, errors.New("there was no connection to cut")
	}
	return p.inFlight(), p.flows(ctx)
}

// fires waits until a shot struck.
func fires(ctx context.Context, shot *proxy.Shot) error {
	return await(ctx, "a connection to be cut", func(context.Context) (bool, string) { return shot.HasFired(), "none was" })
}

func cutStatement(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	if err := fires(ctx, p.database.CutAfter(proxy.ToServer, 20+random.IntN(200))); err != nil {
		return 0, err
	}
	return p.batch(), p.flows(ctx)
}

// loseStatementAnswer leaves a relay without knowing whether its claim or its
// commit succeeded.
func loseStatementAnswer(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	if err := fires(ctx, p.database.DropAnswer(20+random.IntN(200))); err != nil {
		return 0, err
	}
	return p.batch(), p.flows(ctx)
}

// halfOpenDatabase swallows what the relays say on the connections that they
// have. The server's bounds free the locks, and the relays' own bounds free the
// relays; nothing is put right for them.
func halfOpenDatabase(ctx context.Context, p *play, _ *rand.Rand) (int, error) {
	if p.database.HalfOpen() == 0 && !p.together {
		return 0, errors.New("there was no connection")
	}
	err := p.flows(ctx)
	// They went on by themselves. A stop waits for what is still closing.
	return p.inFlight(), errors.Join(err, p.database.Pass())
}

func slowDatabase(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	p.database.Delay(between(random, 5*time.Millisecond, 50*time.Millisecond))
	err := p.flows(ctx)
	sleep(ctx, time.Second)
	return 0, errors.Join(err, p.database.Pass())
}

// commitLate holds a transaction with low ids open while higher ones are
// published, then commits it.
func commitLate(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	late := scenario.Row{Topic: p.topic, Key: fmt.Sprintf("late-%d", random.Uint32()), Keyed: true}
	err := pgx.BeginFunc(ctx, p.stage.Database.Pool, func(tx pgx.Tx) error {
		if err := p.stage.InsertIn(ctx, tx, &late, []byte("committed late")); err != nil {
			return err
		}
		if err := p.flows(ctx); err != nil {
			return err
		}
		sleep(ctx, between(random, 0, 2*time.Second))
		return nil
	})
	if err != nil {
		return 0, p.unlessTogether(err) // the session ended, and with it the row
	}
	return 0, p.arrives(ctx, late)
}
