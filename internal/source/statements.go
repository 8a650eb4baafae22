package source

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// Shards is the number of virtual shards that the key space is divided into.
// It stands in the table's index expressions too (migrations/outbox), so it
// changes only with a migration.
const Shards = 64

// Every statement of the package but those in heldstatements.go. Tokens in braces are replaced by newStatements:
// {outbox} is the quoted table, {shard} the index expression, {exclude} what
// an Exclusion adds. {normal} and {delayed} are the predicates of the two
// partial indexes. {shards} are those that the claim may read.
const (
	shardSQL   = `(coalesce(hashtextextended(o.key, 0), o.id) & 63)`
	normalSQL  = `o.published_at IS NULL AND o.available_at IS NULL`
	delayedSQL = `o.published_at IS NULL AND o.available_at <= now()`

	beginSQL = `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`

	// settingsSQL bounds the transaction on the server's side, so that a
	// relay that froze frees its locks ($1, milliseconds), and lifts the role's own
	// bounds, which would end it in the middle (transaction_timeout is PostgreSQL
	// 17's). Compiling a query
	// that reads some hundred rows costs more than running it (jit). A commit
	// must be on disk before the next step believes it, whatever the role's
	// default, but no standby need be waited for: a mark that is lost with the
	// primary is a duplicate. Plans are kept, and must not be scans of the whole
	// table or of all that is pending because it was small when they were made.
	settingsSQL = `SELECT set_config('idle_in_transaction_session_timeout', $1, true),
       set_config('statement_timeout', $1, true),
       set_config('synchronous_commit', 'local', true),
       set_config('lock_timeout', '0', true),
       CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
            THEN set_config('transaction_timeout', '0', true) END,
       set_config('jit', 'off', true),
       set_config('enable_seqscan', 'off', true),
       set_config('enable_bitmapscan', 'off', true)`

	// shardsSQL are the shards that the transaction may read, as its lock statement
	// says. They stay on the server, so that this and the one that reads, with a
	// snapshot of its own, go there in one round trip.
	shardsSQL = `nullif(current_setting('outbox_relay.shards', true), '')::bigint[]`

	// lockKeySQL locks up to $3 shards that have pending rows, from shard $2 on,
	// looks no further when it has them, and returns their number. OFFSET 0 keeps the planner from
	// turning the probes into one big semi-join, and from trying locks before it
	// probed. Where there is no delayed row at all, which is asked once, the
	// shards are not searched for those. $1: the lock's class; $4: a floor of ids per shard.
	lockKeySQL = `
SELECT count(*), set_config('outbox_relay.shards', coalesce(array_agg(l.shard), '{}')::text, true)
FROM (
    SELECT c.shard
    FROM (
        SELECT s.shard
        FROM generate_series($2::int, $2::int + 63) AS g(n)
        CROSS JOIN LATERAL (SELECT g.n & 63 AS shard OFFSET 0) s
        WHERE EXISTS (SELECT FROM {outbox} o
                      WHERE {shard} = s.shard AND {normal} AND o.id > ($4::bigint[])[s.shard + 1] {exclude} OFFSET 0)
           OR ((SELECT EXISTS (SELECT FROM {outbox} o WHERE o.published_at IS NULL AND o.available_at IS NOT NULL))
               AND EXISTS (SELECT FROM {outbox} o
                           WHERE {shard} = s.shard AND {delayed} {exclude} OFFSET 0))
        OFFSET 0
    ) c
    WHERE pg_try_advisory_xact_lock($1::int, c.shard)
    LIMIT $3::int
) l`

	// lockTotalSQL locks all shards if any has pending rows, and returns how many
	// it locked: with fewer than all of them nothing may be read, since another
	// relay works; with none, nothing is pending either.
	// Shard 0 decides: two relays that began side by side could each get a part.
	// It takes lockKeySQL's parameters; $2 and $3 mean nothing here.
	lockTotalSQL = `
SELECT count(*), set_config('outbox_relay.shards', CASE count(*) WHEN 64 THEN array_agg(l.shard)::text ELSE '{}' END, true)
FROM generate_series(0, 63) AS l(shard)
WHERE (SELECT CASE WHEN $2::int IS NOT NULL AND $3::int IS NOT NULL AND EXISTS (
    SELECT FROM generate_series(0, 63) AS s(shard)
    WHERE EXISTS (SELECT FROM {outbox} o
                  WHERE {shard} = s.shard AND {normal} AND o.id > ($4::bigint[])[s.shard + 1] {exclude} OFFSET 0)
       OR EXISTS (SELECT FROM {outbox} o
                  WHERE {shard} = s.shard AND {delayed} {exclude} OFFSET 0))
    THEN pg_try_advisory_xact_lock($1::int, 0) ELSE false END)
  AND (l.shard = 0 OR pg_try_advisory_xact_lock($1::int, l.shard))`

	// lockNoneSQL is for the ordering that needs no locks: $1 are all shards.
	lockNoneSQL = `SELECT cardinality($1::bigint[]), set_config('outbox_relay.shards', ($1::bigint[])::text, true)`

	// reserveMarkSQL and reserveDeleteSQL take the lock on the table that settling
	// needs and reading does not, so that a claim waits while somebody builds an
	// index, and not a batch that was published already. LOCK TABLE would ask for
	// more privileges than marking does.
	reserveMarkSQL   = `UPDATE {outbox} o SET published_at = NULL WHERE false`
	reserveDeleteSQL = `DELETE FROM {outbox} o WHERE false`

	// writersSQL names the transactions that hold a lock to write to the table:
	// those that inserted into it and have not ended, and some that did not. A
	// relay's own, which hold shards (class $1), never insert.
	writersSQL = `
SELECT l.virtualtransaction
FROM pg_locks l
WHERE l.locktype = 'relation' AND l.granted
  AND l.relation IN ({regclass}::regclass, pg_get_serial_sequence({regclass}, 'id')::regclass)
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  AND NOT EXISTS (
    SELECT FROM pg_locks a
    WHERE a.locktype = 'advisory' AND a.virtualtransaction = l.virtualtransaction
      AND a.database = l.database AND a.objsubid = 2 AND a.classid = ($1::bigint & 4294967295)::oid)`

	// lowestSQL is the lowest pending id above the floors in $1 of each shard that
	// has one, whatever a claim excludes, but for rows that wait behind an entry
	// ({exclude}); and whether it is a row that is drained ({drains}).
	lowestSQL = `
SELECT s.shard, l.id, l.draining
FROM generate_series(0, 63) AS s(shard)
CROSS JOIN LATERAL (SELECT o.id, {drains} AS draining FROM {outbox} o
                    WHERE {shard} = s.shard AND {normal} AND o.id > ($1::bigint[])[s.shard + 1] {exclude}
                    ORDER BY o.id LIMIT 1) l`

	columnsSQL = `o.id, o.message_id, o.topic, o.key, o.type, o.payload, o.content_type, o.headers, o.created_at`

	// shardRowsSQL reads up to {per_shard} rows of each shard, in id order, above the
	// floors in $1. The log position comes first, before any row is locked
	// (locking writes to the log), see barrier.go.
	// Delayed rows have to be sorted; o.id + 0 says so, or a plan that was made for
	// an empty table walks along the primary key to save that.
	shardRowsSQL = `
SELECT w.lsn, s.shard, r.*
FROM (SELECT pg_current_wal_insert_lsn() AS lsn OFFSET 0) w
CROSS JOIN LATERAL (
    SELECT u.shard, ($1::bigint[])[u.shard::int + 1] AS floor FROM unnest({shards}) AS u(shard) WHERE w.lsn IS NOT NULL OFFSET 0
) s
CROSS JOIN LATERAL (
    SELECT * FROM (
        SELECT * FROM (SELECT {columns} FROM {outbox} o
                       WHERE {shard} = s.shard AND {normal} AND o.id > s.floor {exclude}
                       ORDER BY o.id LIMIT {per_shard} {lock}) a
        UNION ALL
        SELECT * FROM (SELECT {columns} FROM {outbox} o
                       WHERE {shard} = s.shard AND {delayed} {exclude}
                       ORDER BY o.id + 0 LIMIT {per_shard} {lock}) b
    ) u
    ORDER BY id LIMIT {per_shard}
) r`

	// keyPerShardSQL gives each of the claim's shards the same part of its $2 rows.
	// Claimer.perShard says the same.
	keyPerShardSQL = `(SELECT ($2::int + n.shards - 1) / nullif(n.shards, 0) FROM (SELECT cardinality({shards}) AS shards) n)`

	// totalRowsSQL reads up to $2 rows in id order from the lowest pending id
	// on, by the primary key: the pending rows of a total order lie together.
	// Its shard -1 stands for all of them.
	totalRowsSQL = `
SELECT w.lsn, -1::bigint AS shard, r.*
FROM (SELECT pg_current_wal_insert_lsn() AS lsn OFFSET 0) w
CROSS JOIN LATERAL (
    SELECT {columns} FROM {outbox} o
    WHERE w.lsn IS NOT NULL AND o.published_at IS NULL AND (o.available_at IS NULL OR o.available_at <= now()) {exclude}
      AND o.id >= (
        SELECT min(m.id)
        FROM (SELECT u.shard, ($1::bigint[])[u.shard::int + 1] AS floor FROM unnest({shards}) AS u(shard) OFFSET 0) s
        CROSS JOIN LATERAL (
            SELECT * FROM (SELECT o.id FROM {outbox} o
                           WHERE {shard} = s.shard AND {normal} AND o.id > s.floor {exclude} ORDER BY o.id LIMIT 1) a
            UNION ALL
            SELECT * FROM (SELECT o.id FROM {outbox} o
                           WHERE {shard} = s.shard AND {delayed} {exclude} ORDER BY o.id + 0 LIMIT 1) b
        ) m)
    ORDER BY o.id LIMIT $2::int {lock}
) r`

	// readSQL bounds the rows of {rows} by $2 rows and by $3 bytes: what is
	// over the bound was locked but is not sent.
	readSQL = `
SELECT lsn, shard, id, message_id, topic, key, type, payload, content_type, headers, created_at, true AS locked
FROM (
    SELECT q.*, coalesce(sum(coalesce(octet_length(payload), 0) + pg_column_size(headers) + 128)
               OVER (ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS bytes_before
    FROM ({rows}) q
) x
WHERE bytes_before < $3::bigint
LIMIT $2::int`

	// readAroundSQL is readSQL for when somebody else holds locks on rows: it
	// locks what it can and reports what it could not, so that their keys can
	// be left out.
	readAroundSQL = `
WITH candidates AS MATERIALIZED (
    SELECT lsn, shard, id, topic, key
    FROM (
        SELECT q.*, coalesce(sum(coalesce(octet_length(payload), 0) + pg_column_size(headers) + 128)
                   OVER (ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS bytes_before
        FROM ({rows}) q
    ) x
    WHERE bytes_before < $3::bigint
    LIMIT $2::int
), mine AS MATERIALIZED (
    SELECT {columns} FROM {outbox} o
    WHERE o.id IN (SELECT id FROM candidates) AND o.published_at IS NULL
    FOR UPDATE SKIP LOCKED
)
SELECT c.lsn, c.shard, c.id, m.message_id, c.topic, c.key, m.type, m.payload, m.content_type, m.headers, m.created_at, m.id IS NOT NULL AS locked
FROM candidates c FULL JOIN mine m ON m.id = c.id
ORDER BY c.id`

	// probeSQL finds out whether the table can be read.
	probeSQL = `SELECT FROM {outbox} o LIMIT 0`

	flushedSQL = `SELECT pg_current_wal_flush_lsn()`

	// flushSQL flushes the log up to and beyond every record that was in it
	// before: a commit that wrote something waits for that. It needs no table
	// and works at every wal_level.
	flushSQL = `SELECT pg_logical_emit_message(true, 'outbox-relay', 'flush')`

	markSQL   = `UPDATE {outbox} o SET published_at = clock_timestamp() WHERE o.id = ANY ($1::bigint[])`
	deleteSQL = `DELETE FROM {outbox} o WHERE o.id = ANY ($1::bigint[])`

	// pruneSQL looks at the next $3 rows after id $1 and deletes those that
	// were published more than $2 seconds ago. It returns the last id that it looked at, how
	// many it saw, how many of them were published, and how many it deleted.
	pruneSQL = `
WITH page AS MATERIALIZED (
    SELECT o.id, o.published_at FROM {outbox} o WHERE o.id > $1::bigint ORDER BY o.id LIMIT $3::int
), victims AS MATERIALIZED (
    SELECT o.id FROM {outbox} o
    WHERE o.id IN (SELECT p.id FROM page p WHERE p.published_at < now() - make_interval(secs => $2::float8)) AND o.published_at < now() - make_interval(secs => $2::float8)
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {outbox} o WHERE o.id IN (SELECT id FROM victims) RETURNING 1
)
SELECT (SELECT max(id) FROM page), (SELECT count(*) FROM page),
       (SELECT count(published_at) FROM page), (SELECT count(*) FROM gone)`

	// backlogSQL counts what is pending now, per topic.
	backlogSQL = `
SELECT o.topic, count(*), coalesce(extract(epoch FROM clock_timestamp() - min(coalesce(o.available_at, o.created_at))), 0)::float8
FROM {outbox} o
WHERE o.published_at IS NULL AND (o.available_at IS NULL OR o.available_at <= now())
GROUP BY o.topic ORDER BY o.topic`

	topicsSQL = `SELECT DISTINCT o.topic FROM {outbox} o WHERE o.published_at IS NULL ORDER BY 1 LIMIT 1000`
)

// statements are the constants above with the names of one table in them.
type statements struct {
	outbox, parked, dead string
}

func newStatements(schema, table string) statements {
	name := func(suffix string) string { return pgx.Identifier{schema, table + suffix}.Sanitize() }
	return statements{outbox: name(""), parked: name("_parked"), dead: name("_dead_letters")}
}

// literal is the table's name as a string constant.
func (s statements) literal() string {
	return "E'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(s.outbox) + "'"
}

// expand replaces the tokens; exclude is the SQL of an Exclusion, beginning
// with AND, or empty; lock is a locking clause or empty.
func (s statements) expand(sql, exclude, lock string) string {
	// Twice, because a replacement holds tokens of its own.
	for range 2 {
		sql = strings.NewReplacer(
			"{shard}", shardSQL, "{normal}", normalSQL, "{delayed}", delayedSQL,
			"{columns}", columnsSQL, "{shards}", shardsSQL, "{exclude}", exclude, "{lock}", lock,
		).Replace(sql)
	}
	return strings.NewReplacer("{outbox}", s.outbox, "{parked}", s.parked, "{dead}", s.dead, "{regclass}", s.literal()).Replace(sql)
}

// look returns the statement that floors look at pending rows with.
func (s statements) look(ordering Ordering) string {
	exclude, drains := notWaitingKeySQL, drainingSQL
	switch ordering {
	case OrderTotal:
		exclude, drains = "", "false"
	case OrderNone:
		exclude, drains = notHeldNoneSQL, "false"
	case OrderKey:
	}
	return s.expand(strings.ReplaceAll(lowestSQL, "{drains}", drains), exclude, "")
}

// claimStatements are the statements of one claim, for one Exclusion.
type claimStatements struct {
	lock       string
	read       string
	readAround string
}

func (s statements) claim(ordering Ordering, excluded func(firstParameter int) string) claimStatements {
	exclude := func(first int) string { return notHeld(ordering) + excluded(first) }
	perShard := "$2::int"
	if ordering == OrderKey {
		perShard = keyPerShardSQL
	}
	rows := func(read, rows, lock string) string {
		read = strings.ReplaceAll(read, "{rows}", rows)
		return s.expand(strings.ReplaceAll(read, "{per_shard}", perShard), exclude(4), lock)
	}
	switch ordering {
	case OrderNone:
		// Nobody's order is at stake: what is locked is passed over.
		read := rows(readSQL, shardRowsSQL, "FOR UPDATE OF o SKIP LOCKED")
		return claimStatements{lock: lockNoneSQL, read: read, readAround: read}
	case OrderTotal:
		return claimStatements{
			lock:       s.expand(lockTotalSQL, exclude(5), ""),
			read:       rows(readSQL, totalRowsSQL, "FOR UPDATE OF o NOWAIT"),
			readAround: rows(readAroundSQL, totalRowsSQL, ""),
		}
	default:
		return claimStatements{
			lock:       s.expand(lockKeySQL, exclude(5), ""),
			read:       rows(readSQL, shardRowsSQL, "FOR UPDATE OF o NOWAIT"),
			readAround: rows(readAroundSQL, shardRowsSQL, ""),
		}
	}
}
