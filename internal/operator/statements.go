package operator

import (
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/source"
)

// exec keeps no statement on the server: a pooler may be in between.
const exec = pgx.QueryExecModeExec

// Every statement of the package. Tokens in braces stand for the outbox's
// tables; {shard} is the index expression of the outbox's pending rows
// (migrations/outbox), {failed} the columns of an entry of the parked table.
const (
	// settingsSQL bounds the waiting for locks ($1) and the life of a command that
	// froze ($2), both in milliseconds, and lifts the role's own bounds. What an
	// operator was told is done must be on disk.
	settingsSQL = `SELECT set_config('lock_timeout', $1, true),
       set_config('idle_in_transaction_session_timeout', $2, true),
       set_config('statement_timeout', '0', true),
       CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'local', true) END,
       CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
            THEN set_config('transaction_timeout', '0', true) END,
       set_config('jit', 'off', true)`

	boundSQL = `SELECT set_config('statement_timeout', $1, true), set_config('jit', 'off', true)`

	notifySQL = `SELECT pg_notify($1, '')`

	nowSQL = `SELECT now()`

	clockSQL = `SELECT clock_timestamp()`

	shardSQL = `(coalesce(hashtextextended(o.key, 0), o.id) & 63)`

	failedSQL = `p.topic, p.key, p.message_id, p.id, p.state, p.attempts, p.reason, p.error, p.parked_at, p.next_retry_at`

	// listParkedSQL: $1 states, $2 topic or null, $3 limit or null.
	listParkedSQL = `
SELECT {failed} FROM {parked} p
WHERE p.state = ANY ($1::text[]) AND ($2::text IS NULL OR p.topic = $2)
ORDER BY p.parked_at, p.id
LIMIT $3::bigint`

	// waitingSQL counts what waits behind each of the entries in $1, in one pass
	// over the pending rows or by probes into their index, as the planner likes.
	// A delayed row waits for its time and not for its key.
	waitingSQL = `
SELECT w.entry, count(*)
FROM (
    SELECT p.id AS entry
    FROM {parked} p
    JOIN {outbox} o ON {shard} = (hashtextextended(p.key, 0) & 63) AND o.id > p.id AND o.key = p.key AND o.topic = p.topic
    WHERE p.id = ANY ($1::bigint[]) AND o.published_at IS NULL AND o.available_at IS NULL
    UNION ALL
    SELECT p.id
    FROM {parked} p
    JOIN {outbox} o ON {shard} = (hashtextextended(p.key, 0) & 63) AND o.available_at <= now() AND o.id > p.id AND o.key = p.key AND o.topic = p.topic
    WHERE p.id = ANY ($1::bigint[]) AND o.published_at IS NULL
) w
GROUP BY w.entry`

	// waitingTotalSQL is waitingSQL for a total order, in which everything later
	// waits.
	waitingTotalSQL = `
SELECT p.id, (SELECT count(*) FROM {outbox} o
              WHERE o.id > p.id AND o.published_at IS NULL AND (o.available_at IS NULL OR o.available_at <= now()))
FROM {parked} p WHERE p.id = ANY ($1::bigint[])`

	findAllParkedSQL = `SELECT {failed} FROM {parked} p WHERE p.state = 'parked' ORDER BY p.id`

	findParkedByKeySQL = `
SELECT {failed} FROM {parked} p
WHERE p.topic = $1 AND p.key = $2 AND hashtextextended(p.key, 0) = hashtextextended($2, 0)
ORDER BY p.id`

	findParkedByMessageSQL = `SELECT {failed} FROM {parked} p WHERE p.message_id = ANY ($1::text[]::uuid[]) ORDER BY p.id`

	retryParkedSQL = `
UPDATE {parked} p SET next_retry_at = now()
WHERE p.id = ANY ($1::bigint[]) AND p.state IN ('parked', 'retrying')
RETURNING {failed}`

	// drainSQL takes the message of an entry out of the way of what waits behind
	// it. A relay publishes that and then removes the entry.
	drainSQL = `
UPDATE {parked} p SET state = 'draining', next_retry_at = now()
WHERE p.id = ANY ($1::bigint[]) AND p.state IN ('parked', 'retrying')
RETURNING {failed}`

	// buryParkedSQL moves the rows of entries to the dead letters. A row that was
	// cancelled or marked by hand is not there, or not pending.
	buryParkedSQL = `
WITH gone AS (
    DELETE FROM {outbox} o USING {parked} p
    WHERE o.id = ANY ($1::bigint[]) AND o.published_at IS NULL
      AND p.id = o.id AND p.message_id = o.message_id
    RETURNING o.id, o.message_id, o.topic, o.key, o.type, {payload} AS payload, o.content_type, o.headers, o.available_at, o.created_at,
              p.attempts, p.reason, p.error, p.first_failed_at, p.last_failed_at
)
INSERT INTO {dead} (id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at,
                    attempts, reason, error, first_failed_at, last_failed_at)
SELECT id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at,
       attempts, reason, error, first_failed_at, last_failed_at
FROM gone
RETURNING id`

	// ofTopicSQL: d is a dead letter of the topic $1. A topic is as long as its
	// writer likes, so the index holds its hash.
	ofTopicSQL = `(d.topic = $1::text AND hashtextextended(d.topic, 0) = hashtextextended($1::text, 0))`

	// listDeadSQL: $1 topic or null, $2 limit or null.
	listDeadSQL = `
SELECT d.message_id, d.id, d.topic, d.key, d.type, d.attempts, d.error, d.dead_at
FROM {dead} d
WHERE $1::text IS NULL OR {of topic}
ORDER BY d.dead_at, d.id
LIMIT $2::bigint`

	// theseSQL: d is one of the dead letters $1 (ids) and $2 (message ids). Ids
	// alone may have begun anew.
	theseSQL = `d.id = ANY ($1::bigint[]) AND (d.id, d.message_id) IN (SELECT u.id, u.message_id::uuid FROM unnest($1::bigint[], $2::text[]) AS u(id, message_id))`

	showDeadSQL = `
SELECT d.message_id, d.id, d.topic, d.key, d.type, d.attempts, d.error, d.dead_at, d.reason,
       d.payload, d.content_type, d.headers, d.available_at, d.created_at, d.first_failed_at, d.last_failed_at
FROM {dead} d WHERE {these}
ORDER BY d.dead_at, d.id`

	letterSQL = `d.message_id, d.id, d.topic, d.key, d.created_at`

	findAllDeadSQL       = `SELECT {letter} FROM {dead} d ORDER BY d.id`
	findDeadByTopicSQL   = `SELECT {letter} FROM {dead} d WHERE {of topic} ORDER BY d.id`
	findDeadByMessageSQL = `SELECT {letter} FROM {dead} d WHERE d.message_id = ANY ($1::text[]::uuid[]) ORDER BY d.id`

	// lockShardsSQL waits until no relay has rows of the dead letters' keys under
	// way, and keeps it so until the commit. Two operators take them in one order.
	lockShardsSQL = `
SELECT pg_advisory_xact_lock($3::int, s.shard)
FROM (
    SELECT DISTINCT (coalesce(hashtextextended(d.key, 0), d.id) & 63)::int AS shard
    FROM {dead} d WHERE {these}
    ORDER BY shard OFFSET 0
) s`

	// reviveSQL moves dead letters back. It returns what left the dead letters,
	// whether it arrived, and whether its id was given to another row meanwhile. The
	// table is as its owner made it: the id may be GENERATED ALWAYS, or unique only
	// within a partition.
	reviveSQL = `
WITH gone AS (
    DELETE FROM {dead} d WHERE {these}
    RETURNING d.*
), back AS (
    INSERT INTO {outbox} (id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at)
    OVERRIDING SYSTEM VALUE
    SELECT id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at
    FROM gone g WHERE NOT EXISTS (SELECT FROM {outbox} o WHERE o.id = g.id) ORDER BY id
    ON CONFLICT DO NOTHING
    RETURNING id, message_id
)
SELECT g.message_id, g.id, g.topic, g.key, g.created_at, g.reason, g.error, g.first_failed_at, g.last_failed_at,
       b.id IS NOT NULL, EXISTS (SELECT FROM {outbox} o WHERE o.id = g.id)
FROM gone g LEFT JOIN back b ON b.id = g.id AND b.message_id = g.message_id
ORDER BY g.id`

	// lockEntriesSQL locks the entries that hold the keys ($1 topics, $2 keys), and
	// those of the rows themselves ($3), which a skip left behind.
	lockEntriesSQL = `
SELECT p.id, p.topic, p.key
FROM {parked} p
WHERE p.id = ANY ($3::bigint[])
   OR (hashtextextended(p.key, 0) = ANY (ARRAY(SELECT hashtextextended(u.key, 0) FROM unnest($2::text[]) AS u(key)))
       AND p.key IS NOT NULL
       AND EXISTS (SELECT FROM unnest($1::text[], $2::text[]) AS u(topic, key) WHERE u.topic = p.topic AND u.key = p.key))
ORDER BY p.id
FOR UPDATE OF p`

	// headEntriesSQL makes other messages ($2 and on) the heads of entries ($1).
	headEntriesSQL = `
UPDATE {parked} p
SET id = u.id, message_id = u.message_id::uuid, topic = u.topic, key = u.key, state = 'retrying', attempts = 0, reason = u.reason, error = u.error,
    first_failed_at = u.first_failed_at, last_failed_at = u.last_failed_at, parked_at = NULL, next_retry_at = now()
FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[], $9::timestamptz[])
    AS u(entry, id, message_id, topic, key, reason, error, first_failed_at, last_failed_at)
WHERE p.id = u.entry`

	makeEntriesSQL = `
INSERT INTO {parked} (id, message_id, topic, key, state, attempts, reason, error, first_failed_at, last_failed_at)
SELECT u.id, u.message_id::uuid, u.topic, u.key, 'retrying', 0, u.reason, u.error, u.first_failed_at, u.last_failed_at
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::timestamptz[])
    AS u(id, message_id, topic, key, reason, error, first_failed_at, last_failed_at)`

	// overtakenSQL names those of the rows ($1 ids, $2 topics, $3 keys) of whose
	// key a later row was published before $4. It reads all later rows: there is
	// no index of what was published, which would cost every mark a write.
	overtakenSQL = `
SELECT DISTINCT r.id
FROM unnest($1::bigint[], $2::text[], $3::text[]) AS r(id, topic, key)
JOIN {outbox} o ON o.topic = r.topic AND o.key = r.key AND o.id > r.id
WHERE o.id > (SELECT min(u.id) FROM unnest($1::bigint[]) AS u(id))
  AND (o.published_at < $4::timestamptz OR o.headers ? '` + source.ReplayMark + `')`

	overtakenTotalSQL = `
SELECT r.id
FROM unnest($1::bigint[], $2::text[], $3::text[]) AS r(id, topic, key)
WHERE EXISTS (SELECT FROM {outbox} o WHERE o.id > r.id AND (o.published_at < $4::timestamptz OR o.headers ? '` + source.ReplayMark + `'))`

	// fateSQL is what became of the messages $1 (ids) and $2 (message ids).
	fateSQL = `
SELECT u.id,
       (SELECT p.state FROM {parked} p WHERE p.id = u.id AND p.message_id = u.message_id::uuid),
       EXISTS (SELECT FROM {dead} d WHERE d.id = u.id AND d.message_id = u.message_id::uuid),
       (SELECT CASE WHEN o.published_at IS NULL THEN 'pending' ELSE 'published' END
        FROM {outbox} o WHERE o.id = u.id AND o.message_id = u.message_id::uuid)
FROM unnest($1::bigint[], $2::text[]) AS u(id, message_id)`

	// justPublishedSQL are the rows that were published within the last minute, of
	// the message ids $1, or of the topic $2 and key $3. It reads the whole table.
	justPublishedSQL = `
SELECT o.topic, o.key, o.message_id, o.id FROM {outbox} o
WHERE o.published_at > now() - interval '1 minute'
  AND (o.message_id = ANY ($1::text[]::uuid[]) OR o.topic = $2::text AND o.key = $3::text)
ORDER BY o.id DESC LIMIT 1000`

	discardSQL = `
DELETE FROM {dead} d WHERE {these}
RETURNING {letter}, d.type, d.reason, d.error, d.attempts`

	// replayableSQL is what a replay selects: $1 topic, $2 key, $3 since, $4 until,
	// $5 message ids, each or null.
	replayableSQL = `
    o.published_at IS NOT NULL AND ($1::text IS NULL OR o.topic = $1) AND ($2::text IS NULL OR o.key = $2)
    AND ($3::timestamptz IS NULL OR o.created_at >= $3) AND ($4::timestamptz IS NULL OR o.created_at < $4)
    AND ($5::text[] IS NULL OR o.message_id = ANY ($5::text[]::uuid[]))`

	countReplaySQL = `SELECT o.topic, count(*) FROM {outbox} o WHERE {replayable} GROUP BY o.topic ORDER BY o.topic`

	foundReplaySQL = `SELECT DISTINCT o.message_id FROM {outbox} o WHERE {replayable}`

	// lockReplaySQL locks up to $6 rows.
	lockReplaySQL = `
SELECT o.message_id, o.id, o.topic, o.key, o.created_at FROM {outbox} o WHERE {replayable}
ORDER BY o.id LIMIT $6::bigint FOR UPDATE`

	replaySQL = `
UPDATE {outbox} o SET published_at = NULL, headers = o.headers || '{"` + source.ReplayMark + `": "true"}'
WHERE o.id = ANY ($1::bigint[])`

	auditSQL = `
INSERT INTO {audit} (os_user, action, id, message_id, topic, key, details)
SELECT $1, $2, u.id, u.message_id::uuid, u.topic, u.key, u.details::jsonb
FROM unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[]) AS u(id, message_id, topic, key, details)`

	failuresSQL = `
SELECT coalesce(p.topic, d.topic) AS topic, coalesce(p.n, 0), coalesce(d.n, 0)
FROM (SELECT topic, count(*) AS n FROM {parked} WHERE state = 'parked' GROUP BY topic) p
FULL JOIN (SELECT topic, count(*) AS n FROM {dead} GROUP BY topic) d ON d.topic = p.topic
ORDER BY 1`
)

// statements puts the names of one outbox's tables into the constants above.
type statements struct{ tables *strings.Replacer }

func newStatements(schema, table string) statements {
	name := func(suffix string) string { return pgx.Identifier{schema, table + suffix}.Sanitize() }
	return statements{strings.NewReplacer(
		"{outbox}", name(""), "{parked}", name("_parked"), "{dead}", name("_dead_letters"), "{audit}", name("_audit"),
		"{shard}", shardSQL, "{failed}", failedSQL, "{letter}", letterSQL, "{these}", theseSQL, "{of topic}", ofTopicSQL, "{replayable}", replayableSQL,
	)}
}

func (s statements) expand(sql string) string { return s.tables.Replace(sql) }
