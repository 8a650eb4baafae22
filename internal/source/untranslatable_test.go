package source_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/source"
)

// claimText claims and settles until nothing is left that can be read, and returns it, and the rows that were parked.
func claimText(t *testing.T, c *source.Claimer, claims ...func() (source.Batch, error)) (ids, parked []int64) {
	t.Helper()
	for range 100 {
		for _, claim := range claims {
			batch, err := claim()
			if text, ok := errors.AsType[*source.TextError](err); ok {
				parked = append(parked, text.IDs...)
			}
			if err != nil && !source.IsTransient(err) {
				t.Fatal(err)
			}
			if batch != nil {
				ids = append(ids, sequences(batch)...)
				if err := batch.Settle(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return ids, parked
}

// Databases of most encodings can hold text that UTF-8 does not have. It concerns its row.
func TestTextThatUTF8DoesNotHave(t *testing.T) {
	for encoding, bad := range map[string]string{
		"WIN1252": `\x81`, "EUC_TW": `\x8ea7a1a1`, "EUC_JP": `\xa9a1`, "EUC_KR": `\xaafe`, "ISO_8859_8": `\xa1`,
	} {
		for _, ordering := range []source.Ordering{source.OrderKey, source.OrderTotal, source.OrderNone} {
			t.Run(fmt.Sprint(encoding, " ", ordering), func(t *testing.T) {
				db := newOutboxIn(t, encoding)
				db.Exec(t, `DROP TRIGGER IF EXISTS outbox_payload_bytes ON outbox`)
				text := `convert_from('` + bad + `'::bytea, '` + encoding + `')`
				db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'key-' || i % 10 FROM generate_series(1, 100) i`, // 1 to 100
					`INSERT INTO outbox (topic, key, type) VALUES ('t', 'key-1', `+text+`), ('t', 'key-1', 'behind'), ('t', 'key-2', `+text+`)`, // to 103
					`INSERT INTO outbox (topic, key) VALUES ('t', `+text+`), ('t', `+text+`), (`+text+`, 'key'), ('t', 'key-3')`,                // to 107
					`INSERT INTO outbox (topic, headers) VALUES ('t', json_build_object('name', `+text+`)::jsonb)`,                              // 108
					`INSERT INTO outbox (topic, payload_json) VALUES ('t', json_build_object('name', `+text+`))`,                                // 109
					`INSERT INTO outbox (topic) VALUES ('t')`, // 110
				)
				c := claimer(db.Pool, func(o *source.Options) { o.Ordering = ordering })
				once := func() (source.Batch, error) { return c.Claim(t.Context(), source.Exclusion{}) }
				got, parked := claimText(t, c, once)
				want, wantParked := []int64{107, 110}, []int64{101, 103, 104, 106, 108, 109}
				switch ordering {
				case source.OrderNone:
					want, wantParked = []int64{102, 107, 110}, []int64{101, 103, 104, 105, 106, 108, 109}
				case source.OrderTotal:
					want, wantParked = nil, []int64{101}
				case source.OrderKey:
				}
				for i := range int64(100) {
					want = append(want, i+1)
				}
				slices.Sort(got)
				slices.Sort(want)
				slices.Sort(parked)
				expect(t, "published", got, want)
				expect(t, "parked", parked, wantParked)
				expect(t, "entries", db.Int(t, `SELECT count(*) FROM outbox_parked WHERE state = 'parked' AND reason = 'encoding' AND error LIKE 'text of the row cannot%SQLSTATE%'`), len(wantParked))

				// So they stay when they are tried again, one that can be read now goes, and others are not hindered.
				db.Exec(t, `UPDATE outbox SET type = 'corrected' WHERE id = 101`, `UPDATE outbox_parked SET next_retry_at = now()`)
				held := func() (source.Batch, error) { return c.ClaimHeld(t.Context(), source.Exclusion{}) }
				got, _ = claimText(t, c, once, held)
				want = []int64{101, 102}
				switch ordering {
				case source.OrderNone:
					want = []int64{101}
				case source.OrderTotal: // up to the next one
				case source.OrderKey:
				}
				expect(t, "published", got, want)
				expect(t, "entries that wait", db.Int(t, `SELECT count(*) FROM outbox_parked WHERE state = 'parked' AND attempts > 1`) > 0, ordering != source.OrderTotal)
			})
		}
	}
}

// What waits behind an entry that drains, too.
func TestTextThatUTF8DoesNotHaveBehindAnEntry(t *testing.T) {
	db := newOutboxIn(t, "WIN1252")
	db.Exec(t, `INSERT INTO outbox (topic, key) SELECT 't', 'a' FROM generate_series(1, 10)`,
		`INSERT INTO outbox (topic, key, type) VALUES ('t', 'a', convert_from('\x81', 'WIN1252'))`, // 11
		`INSERT INTO outbox (topic, key) SELECT 't', 'a' FROM generate_series(1, 10)`)
	c := claimer(poolOf(t, db.URL, "postgres", func(*pgxpool.Config) {}), func(o *source.Options) { o.BatchSize = 10 })
	settleAs(t, claim(t, c, source.Exclusion{}), outcomes{1: refused(0)})
	held := func() (source.Batch, error) { return c.ClaimHeld(t.Context(), source.Exclusion{}) }
	got, parked := claimText(t, c, held)
	expect(t, "published", got, []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	expect(t, "parked", parked, []int64{11})
	expect(t, "entries", entries(t, db), "11 parked 1")
	db.Exec(t, `UPDATE outbox SET type = 'corrected' WHERE id = 11`, `UPDATE outbox_parked SET next_retry_at = now()`)
	got, _ = claimText(t, c, held)
	expect(t, "published", got, []int64{11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21})
}
