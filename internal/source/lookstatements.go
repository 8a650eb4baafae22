package source

import "strings"

// The statements of looks, which raise the floors (floors.go). They lock nothing.
const (
	// lookSettingsSQL bounds the statements of a look ($1, milliseconds): one that takes longer
	// is given up, and the next one looks at less. It lasts as long as the pipeline.
	lookSettingsSQL = `SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', '0', true), set_config('jit', 'off', true),
       set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)`

	// endedSQL are those of the transactions in $1 that have ended.
	endedSQL = `SELECT d.xid FROM unnest($1::xid8[]) AS d(xid) WHERE pg_visible_in_snapshot(d.xid, pg_current_snapshot())`

	// lowestSQL is the lowest pending id above the floors in $1 of each shard from
	// $2 on and before $3 that has one, whatever a claim leaves out.
	lowestSQL = `
SELECT s.shard, l.id
FROM generate_series($2::int, $3::int - 1) AS s(shard)
CROSS JOIN LATERAL (SELECT o.id FROM {outbox} o
                    WHERE {shard} = s.shard AND {normal} AND o.id > ($1::bigint[])[s.shard + 1]
                    ORDER BY o.id LIMIT 1) l`

	// walkedRowsSQL are the next $3 pending rows above the ids in $2 of the shards in $1, and which of
	// them a claim leaves out until something changes that claimers notice: rows of
	// other pipelines, and rows that wait behind an entry. A row behind one that is being
	// drained is no such row: the entry may go while the row is looked at.
	walkedRowsSQL = `
SELECT s.walk, o.id, NOT (true {others}) OR {waiting} AS left_out, {draining} AS draining, o.topic, o.type, o.key
FROM unnest($1::int[], $2::bigint[], $3::int[]) WITH ORDINALITY AS s(shard, floor, n, walk)
CROSS JOIN LATERAL (SELECT o.id, o.message_id, o.topic, o.type, o.key FROM {outbox} o
                    WHERE {shard} = s.shard AND {normal} AND o.id > s.floor
                    ORDER BY o.id LIMIT s.n) o`

	// walkSQL has topic, type and key for the caller's own reasons to leave a row out.
	walkSQL = walkedRowsSQL + `
ORDER BY s.walk, o.id`

	// sumSQL is for where there are none: the last row of each walk, their number, the first that is not
	// left out, and the first that does not wait for a draining entry either.
	sumSQL = `
SELECT w.walk, max(w.id), count(*), min(w.id) FILTER (WHERE NOT w.left_out), min(w.id) FILTER (WHERE NOT w.left_out AND NOT w.draining)
FROM (` + walkedRowsSQL + ` OFFSET 0) w
GROUP BY w.walk`

	// waiting…HashedSQL and drainingKeyHashedSQL say of row o what their namesakes say, and hash the entries once
	// for each statement: where there are few a row costs a quarter.
	waitingKeyHashedSQL = `(` + anyEntrySQL + ` AND CASE WHEN o.key IS NULL
    THEN (o.id, o.message_id) IN (SELECT p.id, p.message_id FROM {parked} p WHERE p.state <> 'draining' AND p.id IS NOT NULL)
    ELSE (o.topic, o.key) IN (SELECT p.topic, p.key FROM {parked} p WHERE p.state <> 'draining' AND p.key IS NOT NULL)
         AND NOT (o.topic, o.key) IN (SELECT p.topic, p.key FROM {parked} p WHERE p.state = 'draining' AND p.key IS NOT NULL) END)`
	drainingKeyHashedSQL = `(` + anyEntrySQL + ` AND o.key IS NOT NULL
    AND (o.topic, o.key) IN (SELECT p.topic, p.key FROM {parked} p WHERE p.state = 'draining' AND p.key IS NOT NULL))`
	waitingNoneHashedSQL = `(` + anyEntrySQL + `
    AND (o.id, o.message_id) IN (SELECT p.id, p.message_id FROM {parked} p WHERE p.state <> 'draining' AND p.id IS NOT NULL))`

	// highestSQL is the highest pending id of each shard from $1 on and before $2, which no claim
	// may have seen where rows are left out.
	highestSQL = `
SELECT s.shard, l.id
FROM generate_series($1::int, $2::int - 1) AS s(shard)
CROSS JOIN LATERAL (SELECT o.id FROM {outbox} o WHERE {shard} = s.shard AND {normal} ORDER BY o.id DESC LIMIT 1) l
WHERE {restricted}`

	// restrictedSQL: entries hold rows back, and few of them. Others may do so too.
	restrictedSQL = `SELECT {restricted}, (SELECT count(*) < 2000 FROM (SELECT FROM {parked} p WHERE p.id IS NOT NULL LIMIT 2000) e)`

	// writersSQL names the transactions that hold a lock to write to the table:
	// those that inserted into it and have not ended, and some that did not; and their
	// transaction ids, as far as they have one and run in the snapshot. A
	// relay's own, which hold shards (class $1), never insert. The last line is how many shards
	// relays have.
	writersSQL = `
WITH locks AS MATERIALIZED (
    SELECT l.* FROM pg_locks l
    WHERE l.granted AND (l.database IS NULL OR l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
)
SELECT l.virtualtransaction,
       (SELECT min(x.xid::text) FROM locks t JOIN pg_snapshot_xip(pg_current_snapshot()) AS x(xid) ON x.xid::xid = t.transactionid
        WHERE t.locktype = 'transactionid' AND t.virtualtransaction = l.virtualtransaction)
FROM locks l
WHERE l.locktype = 'relation'
  AND l.relation IN ({regclass}::regclass, pg_get_serial_sequence({regclass}, 'id')::regclass)
  AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  AND NOT EXISTS (
    SELECT FROM locks a
    WHERE a.locktype = 'advisory' AND a.virtualtransaction = l.virtualtransaction
      AND a.objsubid = 2 AND a.classid = ($1::bigint & 4294967295)::oid)
GROUP BY l.virtualtransaction
UNION ALL
SELECT NULL, count(*)::text FROM locks a
WHERE a.locktype = 'advisory' AND a.objsubid = 2 AND a.classid = ($2::bigint & 4294967295)::oid AND a.mode = 'ExclusiveLock'`
)

// lookStatements are the statements of looks for one ordering.
type lookStatements struct {
	settings, lowest, walk, sum, sumOfMany, highest, restricted, writers string
}

func (s statements) look(ordering Ordering) lookStatements {
	waiting, draining, restricted := waitingKeySQL, drainingKeySQL, anyEntrySQL
	waitingHashed, drainingHashed := waitingKeyHashedSQL, drainingKeyHashedSQL
	switch ordering {
	case OrderTotal: // everything waits for the first entry
		waiting, draining, restricted = "false", "false", "false"
		waitingHashed, drainingHashed = waiting, draining
	case OrderNone:
		waiting, draining = waitingNoneSQL, "false"
		waitingHashed, drainingHashed = waitingNoneHashedSQL, draining
	case OrderKey:
	}
	if s.filter != nil {
		restricted = "true"
	}
	expand := func(sql string) string {
		return s.expand(strings.NewReplacer(
			"{waiting}", waiting, "{draining}", draining, "{restricted}", restricted, "{others}", s.others("o.topic", "o.type"),
		).Replace(sql), "", "")
	}
	return lookStatements{
		sum: expand(strings.NewReplacer("{waiting}", waitingHashed, "{draining}", drainingHashed).Replace(sumSQL)), sumOfMany: expand(sumSQL),
		settings: lookSettingsSQL, lowest: expand(lowestSQL), walk: expand(walkSQL),
		highest: expand(highestSQL), restricted: expand(restrictedSQL), writers: expand(writersSQL),
	}
}
