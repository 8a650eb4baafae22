package source

import "strings"

// The statements about held back messages. {parked} and {dead} are the tables
// beside the outbox; p is an entry of the former.
const (
	// parkedHashSQL is what the index of entries by key holds.
	parkedHashSQL = `hashtextextended(p.key, 0)`

	// holdsKeySQL: entry p holds the keyed row o.
	holdsKeySQL = parkedHashSQL + ` = hashtextextended(o.key, 0) AND p.key = o.key AND p.topic = o.topic`

	// holdsIDSQL: entry p is of row o. Ids may have begun anew since.
	holdsIDSQL = `p.id = o.id AND p.message_id = o.message_id`

	// notHeld…SQL keep held back rows out of a claim, for each ordering. Whether
	// there is any is asked once per statement, so that nothing more is paid when
	// there is none. OFFSET 0 makes the others probes of an index, one per row:
	// reading all entries to hash them would cost each claim all of them.
	notHeldKeySQL = ` AND (NOT (SELECT EXISTS (SELECT FROM {parked} p WHERE p.id IS NOT NULL)) OR CASE WHEN o.key IS NULL
    THEN NOT EXISTS (SELECT FROM {parked} p WHERE ` + holdsIDSQL + ` OFFSET 0)
    ELSE NOT EXISTS (SELECT FROM {parked} p WHERE ` + holdsKeySQL + ` OFFSET 0) END)`
	notHeldNoneSQL = ` AND (NOT (SELECT EXISTS (SELECT FROM {parked} p WHERE p.id IS NOT NULL))
    OR NOT EXISTS (SELECT FROM {parked} p WHERE ` + holdsIDSQL + ` OFFSET 0))`
	notHeldTotalSQL = ` AND o.id < coalesce((SELECT min(p.id) FROM {parked} p), 9223372036854775807)`

	// notWaiting…SQL keep rows out of a look that a claim will not read until an
	// operator or a retry made their entry draining. In a total order looks see
	// everything.
	notWaitingKeySQL = ` AND (NOT (SELECT EXISTS (SELECT FROM {parked} p WHERE p.id IS NOT NULL)) OR CASE WHEN o.key IS NULL
    THEN NOT EXISTS (SELECT FROM {parked} p WHERE p.state <> 'draining' AND ` + holdsIDSQL + ` OFFSET 0)
    ELSE NOT EXISTS (SELECT FROM {parked} p WHERE p.state <> 'draining' AND ` + holdsKeySQL + ` OFFSET 0) END)`

	// drainingSQL: row o is of a key that is being drained.
	drainingSQL = `((SELECT EXISTS (SELECT FROM {parked} p WHERE p.id IS NOT NULL))
    AND EXISTS (SELECT FROM {parked} p WHERE p.state = 'draining' AND ` + holdsKeySQL + ` OFFSET 0))`

	// highestSQL is the highest pending id of each shard, where anything is held
	// back; nothing otherwise.
	highestSQL = `
SELECT s.shard, l.id
FROM generate_series($1::int, $2::int - 1) AS s(shard)
CROSS JOIN LATERAL (SELECT o.id FROM {outbox} o WHERE {shard} = s.shard AND {normal} ORDER BY o.id DESC LIMIT 1) l
WHERE (SELECT EXISTS (SELECT FROM {parked} p WHERE p.id IS NOT NULL))`

	// dueSQL is in how many seconds the first entry is due; null without any.
	dueSQL = `SELECT extract(epoch FROM (SELECT min(p.next_retry_at) FROM {parked} p) - clock_timestamp())::float8`

	// firstSQL: p is the first entry of its key. There is no other, unless the
	// ordering was another one when they were made.
	firstSQL = `(p.key IS NULL OR NOT EXISTS (
    SELECT FROM {parked} q WHERE hashtextextended(q.key, 0) = hashtextextended(p.key, 0) AND q.key = p.key AND q.topic = p.topic AND q.id < p.id OFFSET 0))`

	// lockHeldKeySQL locks the shards of due entries, 16 of them at random, so that
	// keys that never run dry do not keep the others from going on, and returns up
	// to $2 such entries, the one that waits longest first. $1: the lock's class.
	lockHeldKeySQL = `
WITH due AS MATERIALIZED (
    SELECT p.id, p.next_retry_at, (coalesce(` + parkedHashSQL + `, p.id) & 63)::int AS shard
    FROM {parked} p
    WHERE p.next_retry_at <= now() AND ` + firstSQL + ` {exclude}
    ORDER BY p.next_retry_at LIMIT 4 * $2::int
), mine AS MATERIALIZED (
    SELECT s.shard
    FROM (SELECT d.shard FROM due d GROUP BY d.shard ORDER BY random() OFFSET 0) s
    WHERE pg_try_advisory_xact_lock($1::int, s.shard)
    LIMIT 16
)
SELECT d.id FROM due d WHERE d.shard IN (SELECT shard FROM mine) ORDER BY d.next_retry_at LIMIT $2::int`

	// lockHeldNoneSQL needs no shards: the entries are locked when they are read.
	lockHeldNoneSQL = `
SELECT p.id FROM {parked} p
WHERE p.next_retry_at <= now() AND $1::int IS NOT NULL {exclude}
ORDER BY p.next_retry_at LIMIT $2::int FOR UPDATE SKIP LOCKED`

	// lockHeldTotalSQL locks all shards if the first entry is due.
	lockHeldTotalSQL = `
SELECT h.id
FROM (SELECT p.* FROM {parked} p WHERE $2::int IS NOT NULL ORDER BY p.id LIMIT 1) p
CROSS JOIN LATERAL (SELECT p.id WHERE p.next_retry_at <= now() {exclude} OFFSET 0) h
WHERE CASE WHEN pg_try_advisory_xact_lock($1::int, 0)
           THEN (SELECT bool_and(pg_try_advisory_xact_lock($1::int, l.shard)) FROM generate_series(1, 63) AS l(shard))
           ELSE false END`

	// entriesSQL reads the entries in $1 when their shards are locked, and locks
	// them against operators.
	entriesSQL = `
SELECT p.id, p.state, p.attempts, p.topic, p.key, coalesce(` + parkedHashSQL + `, p.id) & 63 FROM {parked} p
WHERE p.id = ANY ($1::bigint[]) AND p.next_retry_at <= now()
FOR UPDATE SKIP LOCKED`

	availableSQL = `(o.available_at IS NULL OR o.available_at <= now())`

	// heldRowsSQL are the rows of the entries in $1 and then those of the keys
	// that the entries in $2 drain, up to $3 of each shard, in id order.
	heldRowsSQL = `
SELECT w.lsn, r.*
FROM (SELECT pg_current_wal_insert_lsn() AS lsn OFFSET 0) w
CROSS JOIN LATERAL (
    SELECT {shard} AS shard, {columns}
    FROM {parked} p JOIN {outbox} o ON ` + holdsIDSQL + `
    WHERE w.lsn IS NOT NULL AND p.id = ANY ($1::bigint[]) AND o.published_at IS NULL AND ` + availableSQL + `
    UNION ALL
    SELECT d.shard, x.*
    FROM (SELECT DISTINCT ` + parkedHashSQL + ` & 63 AS shard FROM {parked} p
          WHERE w.lsn IS NOT NULL AND p.id = ANY ($2::bigint[]) OFFSET 0) d
    CROSS JOIN LATERAL (
        SELECT * FROM (
            SELECT * FROM (SELECT {columns} FROM {outbox} o
                           WHERE {shard} = d.shard AND {normal} AND ` + drainedSQL + ` ORDER BY o.id LIMIT $3::int) a
            UNION ALL
            SELECT * FROM (SELECT {columns} FROM {outbox} o
                           WHERE {shard} = d.shard AND {delayed} AND ` + drainedSQL + ` ORDER BY o.id + 0 LIMIT $3::int) b
        ) u
        ORDER BY id LIMIT $3::int
    ) x
) r`

	// The inner OFFSET 0 keeps the planner from probing for each of $2 instead.
	drainedSQL = `EXISTS (SELECT FROM (SELECT p.id FROM {parked} p WHERE ` + holdsKeySQL + ` OFFSET 0) p WHERE p.id = ANY ($2::bigint[]) OFFSET 0)`

	// heldReadSQL is readAroundSQL for {rows}, with the number of rows before they
	// were bounded. A full join cannot be a nested loop over both, which the planner
	// takes to be short.
	heldReadSQL = `
WITH candidates AS MATERIALIZED (
    SELECT lsn, shard, id, topic, key, found
    FROM (
        SELECT q.*, coalesce(sum(coalesce(octet_length(payload), 0) + pg_column_size(headers) + 128)
                   OVER (ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS bytes_before, count(*) OVER () AS found
        FROM ({rows}) q
    ) x
    WHERE bytes_before < $5::bigint
    LIMIT $4::int
), mine AS MATERIALIZED (
    SELECT {columns} FROM {outbox} o
    WHERE o.id IN (SELECT id FROM candidates) AND o.published_at IS NULL
    FOR UPDATE SKIP LOCKED
)
SELECT c.lsn, c.shard, c.id, m.message_id, c.topic, c.key, m.type, m.payload, m.content_type, m.headers, m.created_at, m.id IS NOT NULL AS locked, c.found
FROM candidates c FULL JOIN mine m ON m.id = c.id
ORDER BY c.id`

	// parkSQL makes entries of refused rows: ids, states, attempts, reasons,
	// errors and seconds until the next retry.
	parkSQL = `
INSERT INTO {parked} AS p (id, message_id, topic, key, state, attempts, reason, error, first_failed_at, last_failed_at, parked_at, next_retry_at)
SELECT o.id, o.message_id, o.topic, o.key, u.state, u.attempts, u.reason, u.error, clock_timestamp(), clock_timestamp(),
       CASE WHEN u.state = 'parked' THEN clock_timestamp() END, clock_timestamp() + make_interval(secs => u.pause)
FROM unnest($1::bigint[], $2::text[], $3::int[], $4::text[], $5::text[], $6::float8[]) AS u(id, state, attempts, reason, error, pause)
JOIN {outbox} o ON o.id = u.id
ON CONFLICT (id) DO UPDATE
SET message_id = excluded.message_id, topic = excluded.topic, key = excluded.key, state = excluded.state,
    attempts = excluded.attempts, reason = excluded.reason, error = excluded.error,
    first_failed_at = excluded.first_failed_at, last_failed_at = excluded.last_failed_at,
    parked_at = excluded.parked_at, next_retry_at = excluded.next_retry_at`

	// failSQL tells entries that their messages were refused again. $7 are the
	// messages, which differ from the entries ($1) where those drained.
	failSQL = `
UPDATE {parked} p
SET id = o.id, message_id = o.message_id, state = u.state, attempts = u.attempts, reason = u.reason, error = u.error,
    first_failed_at = CASE WHEN o.id = p.id THEN p.first_failed_at ELSE clock_timestamp() END,
    last_failed_at = clock_timestamp(),
    parked_at = CASE WHEN u.state <> 'parked' THEN NULL WHEN o.id = p.id AND p.parked_at IS NOT NULL THEN p.parked_at ELSE clock_timestamp() END,
    next_retry_at = clock_timestamp() + make_interval(secs => u.pause)
FROM unnest($1::bigint[], $2::text[], $3::int[], $4::text[], $5::text[], $6::float8[], $7::bigint[]) AS u(entry, state, attempts, reason, error, pause, id)
JOIN {outbox} o ON o.id = u.id
WHERE p.id = u.entry`

	// absorbSQL removes entries of the messages ($2) that others ($1) are about to
	// name: they were made one by one, in another ordering than by key.
	absorbSQL = `
DELETE FROM {parked} p USING unnest($1::bigint[], $2::bigint[]) AS u(entry, id)
WHERE p.id = u.id AND u.entry <> u.id`

	// buryHeldSQL moves rows to the dead letters: ids, attempts, reasons, errors.
	buryHeldSQL = `
WITH gone AS (
    DELETE FROM {outbox} o
    USING unnest($1::bigint[], $2::int[], $3::text[], $4::text[]) AS u(id, attempts, reason, error)
    WHERE o.id = u.id
    RETURNING o.id, o.message_id, o.topic, o.key, o.type, o.payload, o.content_type, o.headers, o.available_at, o.created_at,
              u.attempts, u.reason, u.error
)
INSERT INTO {dead} (id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at,
                    attempts, reason, error, first_failed_at, last_failed_at, dead_at)
SELECT g.id, g.message_id, g.topic, g.key, g.type, g.payload, g.content_type, g.headers, g.available_at, g.created_at,
       g.attempts, g.reason, g.error, coalesce(p.first_failed_at, clock_timestamp()), clock_timestamp(), clock_timestamp()
FROM gone g LEFT JOIN {parked} p ON p.id = g.id AND p.message_id = g.message_id
ON CONFLICT (id, message_id) DO UPDATE
SET attempts = excluded.attempts, reason = excluded.reason, error = excluded.error,
    last_failed_at = excluded.last_failed_at, dead_at = excluded.dead_at`

	// drainSQL lets the keys of entries go on.
	drainSQL = `UPDATE {parked} p SET state = 'draining', next_retry_at = clock_timestamp() WHERE p.id = ANY ($1::bigint[])`

	// forgetSQL removes entries that nothing waits behind.
	forgetSQL = `DELETE FROM {parked} p WHERE p.id = ANY ($1::bigint[])`

	// dropSQL deletes rows that are given up.
	dropSQL = `DELETE FROM {outbox} o WHERE o.id = ANY ($1::bigint[])`

	savepointSQL = `SAVEPOINT published`
	// recordWaitSQL bounds the wait for an entry that an operator's transaction
	// holds, so that it does not take the marks of what was published with it.
	recordWaitSQL  = `SET LOCAL lock_timeout = '2s'`
	toSavepointSQL = `ROLLBACK TO SAVEPOINT published`

	// postponeSQL lets entries wait for so many seconds.
	postponeSQL = `
UPDATE {parked} p SET next_retry_at = clock_timestamp() + make_interval(secs => u.pause)
FROM unnest($1::bigint[], $2::float8[]) AS u(id, pause)
WHERE p.id = u.id`
)

// heldStatements are the statements of one claim of held back messages, for one
// Exclusion.
type heldStatements struct{ lock, entries, read string }

func (s statements) held(ordering Ordering, exclude string) heldStatements {
	lock := lockHeldKeySQL
	switch ordering {
	case OrderNone:
		lock = lockHeldNoneSQL
	case OrderTotal:
		lock = lockHeldTotalSQL
	case OrderKey:
	}
	return heldStatements{
		lock:    s.expand(lock, exclude, ""),
		entries: s.expand(entriesSQL, "", ""),
		read:    s.expand(strings.ReplaceAll(heldReadSQL, "{rows}", heldRowsSQL), "", ""),
	}
}

// notHeld keeps held back rows out of a claim.
func notHeld(ordering Ordering) string {
	switch ordering {
	case OrderNone:
		return notHeldNoneSQL
	case OrderTotal:
		return notHeldTotalSQL
	case OrderKey:
	}
	return notHeldKeySQL
}
