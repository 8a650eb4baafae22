package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A database in another encoding than UTF-8 may hold text that UTF-8 does not have: bytes of WIN1252 that mean
// nothing, characters of EUC_TW. The server then fails the whole statement that sends it (22P05, 22021). Which row is
// at fault is found by halving, and that row is parked, as one that the broker refused for good.

const (
	// textStatements bounds the statements that look for such rows at a time.
	textStatements = 256
	// textPause is the pause before such a row is tried again: only a change by somebody lets it through.
	textPause = time.Hour
)

const (
	// textSQL fails if a row in $1 has text that UTF-8 does not have; {json} is the column payload_json, if there is one.
	textSQL = `
SELECT count(convert_to(concat_ws('', o.topic, o.key, o.type, o.content_type, o.headers::text{json}), 'UTF8'))
FROM {outbox} o WHERE o.id = ANY ($1::bigint[])`

	// entryTextSQL fails if one of the entries in $1 has such a key, as far as claims read it.
	entryTextSQL = `
SELECT count(convert_to(concat_ws('', p.topic, p.key), 'UTF8')) FROM {parked} p
WHERE p.id = ANY ($1::bigint[]) AND p.state = 'draining'`

	// nextRowsSQL are the next rows of each shard that a claim may read: $2 above the floors in $1, and as many delayed ones.
	nextRowsSQL = `
SELECT r.id
FROM generate_series(0, 63) AS s(shard)
CROSS JOIN LATERAL (
    (SELECT o.id FROM {outbox} o WHERE {shard} = s.shard AND {normal} AND o.id > ($1::bigint[])[s.shard + 1] {exclude}
     ORDER BY o.id LIMIT $2::int)
    UNION ALL
    (SELECT o.id FROM {outbox} o WHERE {shard} = s.shard AND {delayed} {exclude} ORDER BY o.id + 0 LIMIT $2::int)
) r
ORDER BY r.id`

	// beforeSQL are those of the rows in $1 that are pending and in shards of the claim, locked, and for each the pending
	// rows of its key before it, up to $2.
	beforeSQL = `
WITH bad AS MATERIALIZED (
    SELECT o.id, o.topic, o.key FROM {outbox} o
    WHERE o.id = ANY ($1::bigint[]) AND {shard} = ANY ({shards}) AND o.published_at IS NULL FOR UPDATE SKIP LOCKED
)
SELECT b.id, array(
    SELECT x.id FROM (
        SELECT o.id FROM {outbox} o WHERE {shard} = (hashtextextended(b.key, 0) & 63) AND {normal}
           AND o.key = b.key AND o.topic = b.topic AND o.id < b.id
        UNION ALL
        SELECT o.id FROM {outbox} o WHERE {shard} = (hashtextextended(b.key, 0) & 63) AND {delayed}
           AND o.key = b.key AND o.topic = b.topic AND o.id < b.id) x
    ORDER BY x.id LIMIT $2::int)
FROM bad b ORDER BY b.id`

	// behindSQL is the entry of $2 that holds row $1, and how many of the rows in $3 are of its key and come before it.
	behindSQL = `
SELECT p.id, (SELECT count(*) FROM {outbox} b WHERE b.id = ANY ($3::bigint[]) AND b.id < o.id AND b.key = o.key AND b.topic = o.topic)
FROM {outbox} o JOIN {parked} p ON ` + holdsKeySQL + ` AND p.id = ANY ($2::bigint[])
WHERE o.id = $1::bigint ORDER BY p.id LIMIT 1`
)

// TextError says that messages were parked because text of them cannot be read in UTF-8.
type TextError struct {
	// IDs are theirs.
	IDs []int64
	Err error
}

// Error implements error.
func (e *TextError) Error() string { return e.Err.Error() }

// Unwrap returns what the database says.
func (e *TextError) Unwrap() error { return e.Err }

// errText says that rows were read in vain, and that the next claim finds the one at fault.
var errText = errors.New("text of a pending row cannot be converted to UTF-8; the next claim finds the row")

func isTextFound(err error) bool {
	_, found := errors.AsType[*TextError](err)
	return found
}

func isTextError(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pgErr.Code == "22P05" || pgErr.Code == "22021") // untranslatable_character, character_not_in_repertoire
}

// textDoubt is whether a claim read text that cannot be converted.
type textDoubt struct {
	// now: the next claim looks for it; vain: the last one found none.
	now, vain bool
}

// failed takes over the error of a claim, and returns that of its caller.
func (d *textDoubt) failed(err error) error {
	switch {
	case err == nil:
		d.vain = false
		return nil
	case !isTextError(err) || isTextFound(err):
		return err
	case d.vain:
		d.vain = false
		return err
	}
	d.now = true
	return errText
}

// untranslatable returns some of the rows with such text, or of the entries, and what the database says of the first. The
// connection is in a transaction.
func (c *Claimer) untranslatable(ctx context.Context, conn *pgconn.PgConn, sql string, ids []int64) (bad []int64, reason, err error) {
	left := textStatements
	json := ""
	if c.statements.hasJSON {
		json = `, CASE WHEN o.payload IS NULL THEN o.payload_json::text END`
	}
	sql = c.statements.expand(strings.ReplaceAll(sql, "{json}", json), "", "")
	var halve func(ids []int64) error
	halve = func(ids []int64) error {
		if len(ids) == 0 || left <= 0 {
			return nil
		}
		left--
		request := &pgconn.Batch{}
		request.ExecParams(savepointSQL, nil, nil, nil, nil)
		request.ExecParams(sql, [][]byte{idArray(ids)}, nil, nil, nil)
		_, err := conn.ExecBatch(ctx, request).ReadAll()
		if err == nil {
			return nil
		}
		if !isTextError(err) {
			return err
		}
		if reason == nil {
			reason = err
		}
		if _, err := conn.Exec(ctx, toSavepointSQL).ReadAll(); err != nil {
			return err
		}
		if len(ids) == 1 {
			bad = append(bad, ids[0])
			return nil
		}
		if err := halve(ids[:len(ids)/2]); err != nil {
			return err
		}
		return halve(ids[len(ids)/2:])
	}
	err = halve(ids)
	return bad, reason, err
}

// textRefusal is the outcome of such a row.
func textRefusal(attempts int, reason error) *Outcome {
	return &Outcome{
		Verdict: Parked, Attempts: attempts, Reason: "encoding", RetryIn: textPause,
		Error: fmt.Sprintf("text of the row cannot be converted to UTF-8: correct the row: %v", reason),
	}
}

// rejectText parks rows that cannot be read, as far as each is the first of its key; it returns those before one that is
// not, for the claim to take them first.
func (c *Claimer) rejectText(ctx context.Context, conn *pgconn.PgConn) (before []int64, err error) {
	c.text = textDoubt{vain: true} // as long as nothing is found
	exclude := notHeld(c.options.Ordering) + c.statements.others("o.topic", "o.type")
	request := &pgconn.Batch{}
	c.begin(preparedOn(conn), request)
	request.ExecParams(c.statements.expand(nextRowsSQL, exclude, ""), [][]byte{idArray(c.floors.lifted[:]), itoa(c.options.BatchSize)}, nil, nil, nil)
	results, err := conn.ExecBatch(ctx, request).ReadAll()
	if err != nil {
		return nil, err
	}
	ids, err := firstColumn(results[beginStatements])
	if err != nil {
		return nil, err
	}
	bad, reason, err := c.untranslatable(ctx, conn, textSQL, ids)
	if err != nil {
		return nil, err
	}
	if len(bad) == 0 {
		return nil, endTransaction(ctx, conn)
	}
	c.text.vain = false
	if c.options.Ordering == OrderTotal {
		bad = bad[:1] // it holds back the others
	}
	request = &pgconn.Batch{}
	request.ExecParams(c.claims.lockNamed, c.namedParameters(bad), nil, nil, nil)
	request.ExecParams(c.statements.expand(beforeSQL, "", ""), [][]byte{idArray(bad), itoa(c.options.BatchSize)}, nil, nil, nil)
	if results, err = conn.ExecBatch(ctx, request).ReadAll(); err != nil {
		return nil, err
	}
	var parked changes
	for _, row := range results[1].Rows {
		id, err := strconv.ParseInt(string(row[0]), 10, 64)
		if err != nil {
			return nil, err
		}
		earlier, err := parseIDs(row[1])
		if err != nil {
			return nil, err
		}
		if len(earlier) > 0 && c.options.Ordering != OrderNone {
			before = append(before, readable(earlier, bad)...)
			continue
		}
		parked.parked.add(id, id, textRefusal(1, reason))
	}
	if parked.none() {
		c.text.now = true
		return before, endTransaction(ctx, conn)
	}
	_, refused, err := recordAll(ctx, conn, &c.statements, false, &parked)
	if err == nil && refused != nil {
		err = refused
	}
	if err == nil {
		_, err = commitWith(ctx, conn, &pgconn.Batch{})
	}
	if err != nil {
		return nil, err
	}
	c.text.now = true // there may be more
	return nil, &TextError{IDs: parked.parked.ids, Err: reason}
}

// readable are the rows up to the first that cannot be read.
func readable(ids, bad []int64) []int64 {
	if i := slices.IndexFunc(ids, func(id int64) bool { return slices.Contains(bad, id) }); i >= 0 {
		return ids[:i]
	}
	return ids
}

// rejectHeldText is rejectText for the entries in ids, whose shards are locked: of those that cannot be read.
func (c *Claimer) rejectHeldText(ctx context.Context, conn *pgconn.PgConn, ids []int64) error {
	c.heldText = textDoubt{vain: true} // as long as nothing is found
	bad, reason, err := c.untranslatable(ctx, conn, entryTextSQL, ids)
	if err != nil {
		return err
	}
	if len(bad) > 0 {
		// Nobody can read what waits behind them, but it may have been corrected.
		request := &pgconn.Batch{}
		request.ExecParams(c.statements.expand(releaseSQL, "", ""), [][]byte{idArray(bad), itoa(int(textPause.Seconds()))}, nil, nil, nil)
		if _, err := commitWith(ctx, conn, request); err != nil {
			return err
		}
		c.heldText = textDoubt{now: true}
		return &TextError{IDs: bad, Err: reason}
	}
	return nil
}

// rejectRowsOfEntries tells the entry of a row that cannot be read that it was refused. Of a row behind an entry that
// drains, it says how many rows of its key the claim may read before it.
func (c *Claimer) rejectRowsOfEntries(ctx context.Context, conn *pgconn.PgConn, held *heldBatch, parameters [][]byte, drained []int64) (entry int64, before int, err error) {
	result := conn.ExecParams(ctx, c.held.ids, parameters, nil, nil, nil).Read()
	if result.Err != nil {
		return 0, 0, result.Err
	}
	ids, err := firstColumn(result)
	if err != nil {
		return 0, 0, err
	}
	bad, reason, err := c.untranslatable(ctx, conn, textSQL, ids)
	if err != nil {
		return 0, 0, err
	}
	if len(bad) == 0 {
		return 0, 0, nil
	}
	c.heldText = textDoubt{now: true}
	var failed changes
	for _, id := range bad {
		if e, ok := held.heads[id]; ok {
			failed.failed.add(id, id, textRefusal(e.attempts+1, reason))
		}
	}
	if failed.none() {
		id := bad[0]
		result := conn.ExecParams(ctx, c.statements.expand(behindSQL, "", ""), [][]byte{[]byte(strconv.FormatInt(id, 10)), idArray(drained), idArray(ids)}, nil, nil, nil).Read()
		if result.Err != nil || len(result.Rows) == 0 {
			return 0, 0, errors.Join(errText, result.Err)
		}
		entry, err1 := strconv.ParseInt(string(result.Rows[0][0]), 10, 64)
		before, err2 := strconv.Atoi(string(result.Rows[0][1]))
		if err := errors.Join(err1, err2); err != nil {
			return 0, 0, err
		}
		if before > 0 {
			return entry, before, nil
		}
		failed.failed.add(entry, id, textRefusal(1, reason))
	}
	_, refused, err := recordAll(ctx, conn, &c.statements, true, &failed)
	if err == nil && refused != nil {
		err = refused
	}
	if err == nil {
		_, err = commitWith(ctx, conn, &pgconn.Batch{})
	}
	if err != nil {
		return 0, 0, err
	}
	return 0, 0, &TextError{IDs: failed.failed.rows, Err: reason}
}

// endTransaction gives a transaction up that goes on without an error.
func endTransaction(ctx context.Context, conn *pgconn.PgConn) error {
	_, err := conn.Exec(ctx, "ROLLBACK").ReadAll()
	return err
}

// firstColumn reads ids.
func firstColumn(result *pgconn.Result) (ids []int64, err error) {
	for _, row := range result.Rows {
		id, err := strconv.ParseInt(string(row[0]), 10, 64)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}
