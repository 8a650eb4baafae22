package scenario

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/outbox"
)

// Effect is what a consumer's handler did about one message.
type Effect struct {
	// Position ascends in the order in which the handlers ran.
	Position  int64
	MessageID outbox.UUID
	// By names the consumer's process, for people.
	By string
}

// EffectCheck compares the messages that were committed with the effects that
// one consumer's handlers had: E.
type EffectCheck struct {
	Committed []Row
	// Undone says why a message was not committed, or is no more.
	Undone map[outbox.UUID]string
	// Effects are in the order of their positions.
	Effects []Effect
	// Ordered: the effects of a topic's key have to ascend in id.
	Ordered bool
}

// Run finds all violations.
func (c EffectCheck) Run() Findings {
	var f Findings
	rows := make(map[outbox.UUID]Row, len(c.Committed))
	for _, row := range c.Committed {
		rows[row.MessageID] = row
	}
	first := make(map[outbox.UUID]Effect, len(c.Effects))
	type place struct{ topic, key string }
	latest := map[place]Row{}
	for _, effect := range c.Effects {
		if before, again := first[effect.MessageID]; again {
			f.Duplicates++
			f.add('E', "%s had its effect again: #%d by %s, after #%d by %s", effect.MessageID, effect.Position, effect.By, before.Position, before.By)
			continue
		}
		first[effect.MessageID] = effect
		row, ok := rows[effect.MessageID]
		if !ok {
			f.add('E', "%s had an effect, #%d by %s: %s", effect.MessageID, effect.Position, effect.By, reasonOf(c.Undone, effect.MessageID))
			continue
		}
		if !c.Ordered || !row.Keyed || row.Delayed {
			continue
		}
		at := place{row.Topic, row.Key}
		if last, ok := latest[at]; ok && last.ID > row.ID {
			f.add('O', "the effect of id %d of key %q, #%d by %s, came after that of id %d", row.ID, row.Key, effect.Position, effect.By, last.ID)
			continue
		}
		latest[at] = row
	}
	for _, row := range c.Committed {
		if _, ok := first[row.MessageID]; !ok {
			f.add('E', "id %d (%s) of topic %s key %q was committed and had no effect", row.ID, row.MessageID, row.Topic, row.Key)
		}
	}
	return f
}

// Effects is a consumer's database: an inbox, and a table that has a row for
// each time that a handler ran and its transaction was committed. Nothing in
// the table refuses a second row of a message.
type Effects struct {
	*Database
	t testing.TB
}

// effectsSQL makes the table. The column position is drawn inside the handler.
const effectsSQL = `
CREATE TABLE effects (position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, message_id uuid NOT NULL, process text NOT NULL)`

// NewEffects makes the database on the shared PostgreSQL, beside the stage's
// own, and the inbox by `relay migrate --only inbox`.
func (s *Stage) NewEffects() *Effects {
	s.t.Helper()
	database := NewDatabase(s.t)
	migrator := NewRelay(s.t, "migrate-inbox", s.Config.With(Settings{"database.url": database.URL}))
	if result := migrator.Command("migrate", "--only", "inbox"); result.Code != 0 {
		s.t.Fatalf("relay migrate --only inbox: %s", result)
	}
	database.Exec(s.t, effectsSQL)
	return &Effects{database, s.t}
}

// All are the effects so far, in the order of their positions.
func (e *Effects) All(ctx context.Context) ([]Effect, error) {
	rows, err := e.Pool.Query(ctx, `SELECT position, message_id, process FROM effects ORDER BY position`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (effect Effect, err error) {
		return effect, row.Scan(&effect.Position, (*[16]byte)(&effect.MessageID), &effect.By)
	})
}

// Distinct is how many messages had an effect so far.
func (e *Effects) Distinct(ctx context.Context) (n int, err error) {
	err = e.Pool.QueryRow(ctx, `SELECT count(DISTINCT message_id) FROM effects`).Scan(&n)
	return n, err
}

// CheckEffects compares the effects with the truth.
func (s *Stage) CheckEffects(effects *Effects, ordered bool) Findings {
	s.t.Helper()
	committed, err := s.committed()
	if err != nil {
		s.t.Fatalf("read the truth: %v", err)
	}
	all, err := effects.All(s.t.Context())
	if err != nil {
		s.t.Fatalf("read the effects: %v", err)
	}
	if len(committed) == 0 {
		s.t.Error("nothing was committed, so nothing was tested")
	}
	findings := EffectCheck{Committed: committed, Undone: s.undone(), Effects: all, Ordered: ordered}.Run()
	s.t.Logf("committed %d, effects %d, of them again %d", len(committed), len(all), findings.Duplicates)
	return findings
}

// VerifyEffects fails the test unless every committed message had one effect
// and no other had any. Ordered demands that the effects of each key ascend.
func (s *Stage) VerifyEffects(effects *Effects, ordered bool) {
	s.t.Helper()
	if findings := s.CheckEffects(effects, ordered); len(findings.Violations) > 0 {
		s.t.Errorf("%d violations:\n%s", len(findings.Violations), findings)
	}
}

// reasonOf says why a message was not committed.
func reasonOf(undone map[outbox.UUID]string, id outbox.UUID) string {
	if why, ok := undone[id]; ok {
		return why
	}
	return "no transaction that recorded it is committed"
}
