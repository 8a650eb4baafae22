package faults_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/outbox"
)

// resent is how often each relay may send a row at most that it cannot mark.
const resent = 2

// failAllMarks has a trigger refuse every mark.
func failAllMarks(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	return failMarks(ctx, p, random, `coalesce(OLD.key, '') NOT LIKE 'poisoned-%'`)
}

// failSomeMarks has a trigger refuse the marks of some keys. Those of the others
// succeed, whatever batch they are in.
func failSomeMarks(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	const some = `OLD.key IN ('key-1', 'key-2', 'key-3')`
	return failMarks(ctx, p, random, some)
}

// failMarks refuses the marks of rows that match the condition for some seconds.
// What was sent and could not be marked must not be sent again and again.
func failMarks(ctx context.Context, p *play, random *rand.Rand, condition string) (int, error) {
	before, err := p.log.Records(ctx)
	if err != nil {
		return 0, p.unlessTogether(err)
	}
	if _, err := p.stage.Database.Pool.Exec(ctx, `
CREATE OR REPLACE FUNCTION refuse_mark() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'marks are refused'; END $$;
CREATE OR REPLACE TRIGGER refuse_mark BEFORE UPDATE OF published_at OR DELETE ON `+p.stage.Table+`
    FOR EACH ROW WHEN (`+condition+`) EXECUTE FUNCTION refuse_mark()`); err != nil {
		return 0, p.unlessTogether(err)
	}
	sleep(ctx, between(random, 4*time.Second, 6*time.Second))
	err = p.othersAreMarked(ctx, condition)
	sent := map[outbox.UUID]int{}
	again := 0
	// Without the fault they are read in the end.
	if records, readErr := p.log.Records(ctx); readErr == nil {
		for _, record := range records[len(before):] {
			sent[record.MessageID]++
			if sent[record.MessageID] > 1 {
				again++
			}
		}
	}
	if most := slices.Max(append(slices.Collect(maps.Values(sent)), 0)); most > resent*len(p.fleet) && !p.together {
		err = errors.Join(err, fmt.Errorf("D: a message was sent %d times while it could not be marked, by %d relays", most, len(p.fleet)))
	}
	p.t.Logf("%d messages were sent while marks failed, %d of them again", len(sent), again)
	// A database that is away for another fault gets its trigger dropped later.
	drop := await(ctx, "the trigger to be dropped", func(ctx context.Context) (bool, string) {
		_, err := p.stage.Database.Pool.Exec(ctx, `DROP TRIGGER IF EXISTS refuse_mark ON `+p.stage.Table)
		return err == nil, fmt.Sprint(err)
	})
	return again + resent*p.inFlight(), errors.Join(err, drop, p.flows(ctx))
}

// othersAreMarked waits until the rows that do not match the condition, of those
// that there are now, are marked or deleted.
func (p *play) othersAreMarked(ctx context.Context, condition string) error {
	newest := int64(-1)
	return await(ctx, "the marks of other rows", func(ctx context.Context) (bool, string) {
		if newest < 0 {
			if err := p.stage.Database.Pool.QueryRow(ctx, `SELECT coalesce(max(id), 0) FROM truth`).Scan(&newest); err != nil {
				return false, err.Error()
			}
		}
		var pending int64
		err := p.stage.Database.Pool.QueryRow(ctx, `
SELECT count(*) FROM `+p.stage.Table+` OLD
WHERE published_at IS NULL AND id <= $1 AND topic = ANY ($2) AND coalesce(key, '') NOT LIKE 'poisoned-%' AND NOT coalesce(`+condition+`, false)`,
			newest, p.main.Topics()).Scan(&pending)
		return err == nil && pending == 0, fmt.Sprintf("%d rows are pending (%v)", pending, err)
	})
}

// playRevokedMarks takes the privilege to mark away from the relays' role.
func playRevokedMarks(t *testing.T, a *arena) {
	p := a.newPlay(t, 1, false, settings(nil))
	role := p.stage.Database.Name + "_relay"
	p.stage.Database.Exec(t, fmt.Sprintf(`CREATE ROLE %[1]s LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO %[1]s; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO %[1]s`, role))
	t.Cleanup(func() {
		_, _ = p.stage.Database.Pool.Exec(context.Background(), fmt.Sprintf(`DROP OWNED BY %[1]s; DROP ROLE %[1]s`, role))
	})
	address, err := url.Parse(through(t, p.stage.Database.URL, a.database.Address()))
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.User(role)
	p.stage.Config = p.stage.Config.With(scenario.Settings{"database.url": address.String()})
	start(t, p, 2)
	p.perform(steady, func(ctx context.Context) (int, error) {
		before, err := p.log.Records(ctx)
		if err != nil {
			return 0, err
		}
		p.stage.Database.Exec(t, `REVOKE UPDATE ON `+p.stage.Table+` FROM `+role)
		sleep(ctx, 4*time.Second)
		records, err := p.log.Records(ctx)
		if sent := len(records) - len(before); err == nil && sent > resent*p.inFlight() {
			err = fmt.Errorf("D: %d messages were sent while none could be marked, %d are in flight at most", sent, p.inFlight())
		}
		p.stage.Database.Exec(t, `GRANT UPDATE ON `+p.stage.Table+` TO `+role)
		return resent * p.inFlight(), errors.Join(err, p.flows(ctx))
	})
}
