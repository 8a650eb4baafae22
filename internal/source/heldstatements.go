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

	// anyEntrySQL: anything is held back.
	anyEntrySQL = `(SELECT EXISTS (SELECT FROM {parked} p WHERE p.id IS NOT NULL))`

	// notHeld…SQL keep held back rows out of a claim, for each ordering. Whether
	// there is any is asked once per statement, so that nothing more is paid when
	// there is none. OFFSET 0 makes the others probes of an index, one per row:
	// reading all entries to hash them would cost each claim all of them.
	notHeldKeySQL = ` AND (NOT ` + anyEntrySQL + ` OR CASE WHEN o.key IS NULL
    THEN NOT EXISTS (SELECT FROM {parked} p WHERE ` + holdsIDSQL + ` OFFSET 0)
    ELSE NOT EXISTS (SELECT FROM {parked} p WHERE ` + holdsKeySQL + ` OFFSET 0) END)`
	notHeldNoneSQL = ` AND (NOT ` + anyEntrySQL + `
    OR NOT EXISTS (SELECT FROM {parked} p WHERE ` + holdsIDSQL + ` OFFSET 0))`
	notHeldTotalSQL = ` AND o.id < coalesce((SELECT min(p.id) FROM {parked} p WHERE p.state <> 'draining'), 9223372036854775807)`

	// waiting…SQL: no claim reads row o until an operator or a retry made its entry draining.
	waitingKeySQL = `(` + anyEntrySQL + ` AND CASE WHEN o.key IS NULL
    THEN EXISTS (SELECT FROM {parked} p WHERE p.state <> 'draining' AND ` + holdsIDSQL + ` OFFSET 0)
    ELSE EXISTS (SELECT FROM {parked} p WHERE p.state <> 'draining' AND ` + holdsKeySQL + ` OFFSET 0)
         AND NOT EXISTS (SELECT FROM {parked} p WHERE p.state = 'draining' AND ` + holdsKeySQL + ` OFFSET 0) END)`
	drainingKeySQL = `(` + anyEntrySQL + `
    AND o.key IS NOT NULL AND EXISTS (SELECT FROM {parked} p WHERE p.state = 'draining' AND ` + holdsKeySQL + ` OFFSET 0))`
	waitingNoneSQL = `(` + anyEntrySQL + `
    AND EXISTS (SELECT FROM {parked} p WHERE p.state <> 'draining' AND ` + holdsIDSQL + ` OFFSET 0))`

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
    WHERE p.next_retry_at <= now() AND ` + firstSQL + ` {mine}
    ORDER BY p.next_retry_at LIMIT 4 * $2::int
), mine AS MATERIALIZED (
    SELECT c.shard
    FROM (SELECT d.shard FROM due d GROUP BY d.shard ORDER BY random() OFFSET 0) c
    WHERE {try}
    LIMIT 16
)
SELECT d.id FROM due d WHERE d.shard IN (SELECT shard FROM mine) ORDER BY d.next_retry_at LIMIT $2::int`

	// lockHeldNoneSQL needs no shards: the entries are locked when they are read.
	lockHeldNoneSQL = `
SELECT p.id FROM {parked} p
WHERE p.next_retry_at <= now() AND $1::int IS NOT NULL {mine}
ORDER BY p.next_retry_at LIMIT $2::int FOR UPDATE SKIP LOCKED`

	// lockHeldTotalSQL locks all shards if the first entry is due that holds anything back, and
	// returns it with those that are being drained: what they held back goes its way by
	// itself here, and other relays may order by key.
	lockHeldTotalSQL = `
SELECT h.id
FROM (
    (SELECT p.id, p.next_retry_at FROM {parked} p WHERE p.state <> 'draining' ORDER BY p.id LIMIT 1)
    UNION ALL
    (SELECT p.id, p.next_retry_at FROM {parked} p WHERE p.state = 'draining' AND p.next_retry_at <= now() ORDER BY p.next_retry_at LIMIT $2::int)
) h
WHERE h.next_retry_at <= now()
  AND CASE WHEN pg_try_advisory_xact_lock($1::int, 0)
           THEN (SELECT bool_and(pg_try_advisory_xact_lock($1::int, l.shard)) FROM generate_series(1, 63) AS l(shard))
           ELSE false END`

	// entriesSQL reads the entries in $1 when their shards are locked, and locks
	// them against operators. A key that UTF-8 does not have may be read of no entry but one that drains.
	entriesSQL = `
SELECT p.id, p.state, p.attempts, CASE WHEN p.state = 'draining' THEN p.topic END, CASE WHEN p.state = 'draining' THEN p.key END,
       coalesce(` + parkedHashSQL + `, p.id) & 63, p.key IS NOT NULL
FROM {parked} p
WHERE p.id = ANY ($1::bigint[]) AND p.next_retry_at <= now()
FOR UPDATE SKIP LOCKED`

	availableSQL = `(o.available_at IS NULL OR o.available_at <= now())`

	// heldRowsSQL are the rows of the entries in $1 and then those of the keys
	// that the entries in $2 drain, up to $3 of each shard, in id order.
	heldRowsSQL = `
SELECT w.lsn, r.*
FROM (SELECT {log_end} AS lsn OFFSET 0) w
CROSS JOIN LATERAL (
    SELECT {shard} AS shard, {columns}
    FROM {parked} p JOIN {outbox} o ON ` + holdsIDSQL + `
    WHERE w.lsn IS NOT NULL AND p.id = ANY ($1::bigint[]) AND o.published_at IS NULL AND ` + availableSQL + `
    UNION ALL
    SELECT d.shard, x.*
    FROM (SELECT ` + parkedHashSQL + ` & 63 AS shard, min(p.id) AS first FROM {parked} p
          WHERE w.lsn IS NOT NULL AND p.id = ANY ($2::bigint[]) GROUP BY 1 OFFSET 0) d
    CROSS JOIN LATERAL (
        SELECT * FROM (
            SELECT * FROM (SELECT {columns} FROM {outbox} o
                           WHERE {shard} = d.shard AND {normal} AND o.id > d.first AND ` + drainedSQL + ` {others} ORDER BY o.id LIMIT $3::int) a
            UNION ALL
            SELECT * FROM (SELECT {columns} FROM {outbox} o
                           WHERE {shard} = d.shard AND {delayed} AND ` + drainedSQL + ` {others} ORDER BY o.id + 0 LIMIT $3::int) b
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
    RETURNING o.id, o.message_id, o.topic, o.key, o.type, {payload} AS payload, o.content_type, o.headers, o.available_at, o.created_at,
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

	// releaseSQL removes those of the drained entries in $1 that nothing waits behind, for
	// claims that have not looked themselves: another ordering's, or one pipeline's of several. The others
	// are looked at again after $2 seconds. The entry has been draining since before this statement's snapshot, so
	// what a floor passed while it held its key back is seen here (docs/design.md).
	releaseSQL = `
WITH left_over AS MATERIALIZED (
    SELECT p.id FROM {parked} p
    WHERE p.id = ANY ($1::bigint[]) AND p.key IS NOT NULL
      AND (EXISTS (SELECT FROM {outbox} o WHERE {shard} = (` + parkedHashSQL + ` & 63) AND {normal} AND ` + holdsKeySQL + ` OFFSET 0)
        OR EXISTS (SELECT FROM {outbox} o WHERE {shard} = (` + parkedHashSQL + ` & 63) AND {delayed} AND ` + holdsKeySQL + ` OFFSET 0))
), gone AS (
    DELETE FROM {parked} p WHERE p.id = ANY ($1::bigint[]) AND p.id NOT IN (SELECT id FROM left_over) RETURNING 1
)
UPDATE {parked} p SET next_retry_at = clock_timestamp() + make_interval(secs => $2::float8)
WHERE p.id IN (SELECT id FROM left_over) AND (SELECT count(*) FROM gone) IS NOT NULL`

	// dropSQL deletes rows that are given up.
	dropSQL = `DELETE FROM {outbox} o WHERE o.id = ANY ($1::bigint[])`

	savepointSQL   = `SAVEPOINT published`
	toSavepointSQL = `ROLLBACK TO SAVEPOINT published`
	// recordWaitSQL bounds the wait for an entry that an operator's transaction
	// holds, so that it does not take the marks of what was published with it.
	recordWaitSQL = `SET LOCAL lock_timeout = '2s'`

	// postponeSQL lets entries wait for so many seconds.
	postponeSQL = `
UPDATE {parked} p SET next_retry_at = clock_timestamp() + make_interval(secs => u.pause)
FROM unnest($1::bigint[], $2::float8[]) AS u(id, pause)
WHERE p.id = u.id`
)

// heldStatements are the statements of one claim of held back messages.
type heldStatements struct {
	lock, entries, read string
	// ids is read for the ids of the rows alone.
	ids string
}

func (s statements) held(ordering Ordering) heldStatements {
	lock, try := lockHeldKeySQL, tryShardSQL
	switch ordering {
	case OrderNone:
		lock = lockHeldNoneSQL
	case OrderTotal:
		lock = lockHeldTotalSQL
	case OrderKey:
	}
	if s.filter != nil {
		try = strings.ReplaceAll(tryPipelineSQL, "$7", "$3")
	}
	rows := heldRowsSQL
	if s.dependsOnType() { // another pipeline's entry may have moved past this one's rows
		rows = strings.ReplaceAll(rows, "o.id > d.first AND ", "")
	}
	expand := func(sql string) string {
		return s.expand(strings.NewReplacer("{mine}", s.mine(), "{others}", s.others("o.topic", "o.type"), "{try}", try).Replace(sql), "", "")
	}
	h := heldStatements{
		lock:    expand(lock),
		entries: expand(entriesSQL),
		read:    expand(strings.ReplaceAll(heldReadSQL, "{rows}", rows)),
	}
	s.hasJSON = false // its text may be what cannot be converted
	h.ids = expand(`SELECT r.id FROM (` + strings.ReplaceAll(heldReadSQL, "{rows}", rows) + `) r ORDER BY r.id`)
	return h
}

// mine keeps entries of other pipelines out. Where the type decides, what waits behind
// an entry may be several pipelines' rows, and each of them drains its own.
func (s statements) mine() string {
	if s.filter == nil {
		return ""
	}
	const typ = `coalesce((SELECT t.type FROM {outbox} t WHERE t.id = p.id), '')`
	if !s.dependsOnType() {
		return s.others("p.topic", typ)
	}
	// One that has none of its own leaves the entry to the others, and the last rows' to anybody.
	behind := func(which, filter string) string {
		return `EXISTS (SELECT FROM {outbox} o WHERE {shard} = (` + parkedHashSQL + ` & 63) AND ` + which + ` AND ` + holdsKeySQL + filter + ` OFFSET 0)`
	}
	mine := s.others("o.topic", "o.type")
	return " AND CASE WHEN p.state = 'draining' THEN " + behind("{normal}", mine) + " OR " + behind("{delayed}", mine) +
		" OR NOT (" + behind("{normal}", "") + " OR " + behind("{delayed}", "") + ") ELSE " + s.filter("p.topic", typ) + " END"
}

// dependsOnType reports whether the type of a row decides whose it is.
func (s statements) dependsOnType() bool {
	return s.filter != nil && strings.Contains(s.filter("o.topic", "{type}"), "{type}")
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
