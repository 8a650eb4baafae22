package source

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// Shards is the number of virtual shards that the key space is divided into.
// It stands in the table's index expressions too (migrations/outbox), so it
// changes only with a migration.
const Shards = 64

// Every statement of the package but those in heldstatements.go and lookstatements.go. Tokens
// in braces are replaced by newStatements: {outbox} is the quoted table, {shard} the index
// expression, {normal} and {delayed} are the predicates of the two partial indexes. {shards}
// are those that the claim may read. {exclude} leaves out rows of other pipelines and rows
// that are held back; {try} locks shard c.shard.
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
	// probed. $1: the lock's class; $4: a floor of ids per shard; $5: shards with delayed
	// rows that are due. A probe walks over $6 rows at most: what is left out may be a
	// million rows, and the others do not wait for the walk (floors.go).
	lockKeySQL = `
SELECT count(*), set_config('outbox_relay.shards', coalesce(array_agg(l.shard), '{}')::text, true)
FROM (
    SELECT c.shard
    FROM (
        SELECT s.shard
        FROM generate_series($2::int, $2::int + 63) AS g(n)
        CROSS JOIN LATERAL (SELECT g.n & 63 AS shard OFFSET 0) s
        WHERE s.shard = ANY ($5::int[]) OR {some}
        OFFSET 0
    ) c
    WHERE {try}
    LIMIT $3::int
) l`

	// someSQL: shard s has a row for the claim among the next $6.
	someSQL = `EXISTS (
            SELECT FROM (SELECT o.id, o.message_id, o.topic, o.key, o.type FROM {outbox} o
                         WHERE {shard} = s.shard AND {normal} AND o.id > ($4::bigint[])[s.shard + 1]
                         ORDER BY o.id LIMIT $6::bigint) o
            WHERE true {exclude} OFFSET 0)`

	// tryShardSQL locks a shard for itself. tryPipelineSQL locks it for one pipeline of
	// several ($7: its class), and against relays that have one pipeline for all.
	tryShardSQL    = `pg_try_advisory_xact_lock($1::int, c.shard)`
	tryPipelineSQL = `pg_try_advisory_xact_lock($7::int, c.shard) AND pg_try_advisory_xact_lock_shared($1::int, c.shard)`

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
    WHERE s.shard = ANY ($5::int[]) OR {some})
    THEN pg_try_advisory_xact_lock($1::int, 0) ELSE false END)
  AND (l.shard = 0 OR pg_try_advisory_xact_lock($1::int, l.shard))`

	// lockNoneSQL is for the ordering that needs no locks: $1 are all shards.
	lockNoneSQL = `SELECT cardinality($1::bigint[]), set_config('outbox_relay.shards', ($1::bigint[])::text, true)`
	// lockNoneNamedSQL is lockNamedSQL for it.
	lockNoneNamedSQL = `
SELECT 64, set_config('outbox_relay.shards', (SELECT array_agg(g.n)::text FROM generate_series(0, 63) AS g(n)), true)
WHERE $1::int IS NOT NULL AND $2::bigint[] IS NOT NULL`

	// reserveMarkSQL and reserveDeleteSQL take the lock on the table that settling
	// needs and reading does not, so that a claim waits while somebody builds an
	// index, and not a batch that was published already. LOCK TABLE would ask for
	// more privileges than marking does.
	reserveMarkSQL   = `UPDATE {outbox} o SET published_at = NULL WHERE false`
	reserveDeleteSQL = `DELETE FROM {outbox} o WHERE false`

	columnsSQL = `o.id, o.message_id, o.topic, o.key, o.type, {payload} AS payload, o.content_type, o.headers, o.created_at`

	// logEndSQL is the end of the log after the statement's snapshot was taken, before any row is
	// locked (locking writes to the log), see barrier.go. It has no row, and so the claim reads
	// none, when a transaction has ended that the floors passed while it ran ($6):
	// its rows are below the floors, and what follows them may be above (floors.go).
	logEndSQL = `(SELECT {log_end} AS lsn
      WHERE NOT EXISTS (SELECT FROM unnest($6::xid8[]) AS d(xid) WHERE pg_visible_in_snapshot(d.xid, pg_current_snapshot()))
      OFFSET 0)`

	// shardRowsSQL reads up to {per_shard} rows of each shard, in id order, above the
	// floors in $1, and of the delayed rows those in $4, shard by shard as $5 says: see delayed.go.
	// Where rows are left out it walks over the next $7 of a shard at most.
	shardRowsSQL = `
SELECT w.lsn, s.shard, r.*
FROM ` + logEndSQL + ` w
CROSS JOIN LATERAL (
    SELECT u.shard, f.floor, {ceiling} AS ceiling
    FROM unnest({shards}) AS u(shard)
    CROSS JOIN LATERAL (SELECT ($1::bigint[])[u.shard::int + 1] AS floor OFFSET 0) f
    WHERE w.lsn IS NOT NULL OFFSET 0
) s
CROSS JOIN LATERAL (
    SELECT * FROM (
        SELECT * FROM (SELECT {columns} FROM {outbox} o
                       WHERE {shard} = s.shard AND {normal} AND o.id > s.floor AND o.id <= s.ceiling {exclude}
                       ORDER BY o.id LIMIT {per_shard} {lock}) a
        UNION ALL
        SELECT b.* FROM ({due}) d
        CROSS JOIN LATERAL (SELECT {columns} FROM {outbox} o WHERE o.id = d.id AND {delayed} {exclude} OFFSET 0 {lock}) b
    ) u
    ORDER BY id LIMIT {per_shard}
) r`

	// dueIDsSQL are the ids in $4 of shard s: a slice, whose bounds for each shard are in $5.
	dueIDsSQL = `SELECT d.id FROM unnest(($4::bigint[])[($5::int[])[s.shard::int + 1] + 1:($5::int[])[s.shard::int + 2]]) AS d(id) OFFSET 0`

	// ceilingSQL is the last of the next $7 rows of a shard, and no bound where nothing is left
	// out: then the first rows are the ones.
	ceilingSQL = `coalesce(CASE WHEN {restricted} THEN (
        SELECT o.id FROM {outbox} o WHERE {shard} = u.shard AND {normal} AND o.id > f.floor ORDER BY o.id OFFSET $7::bigint LIMIT 1) END,
        9223372036854775807)`

	// keyPerShardSQL gives each of the claim's shards the same part of its $2 rows.
	// Claimer.perShard says the same.
	keyPerShardSQL = `(SELECT ($2::int + n.shards - 1) / nullif(n.shards, 0) FROM (SELECT cardinality({shards}) AS shards) n)`

	// totalRowsSQL reads up to $2 rows in id order from the lowest pending id
	// on, by the primary key: the pending rows of a total order lie together.
	// Its shard -1 stands for all of them.
	totalRowsSQL = `
SELECT w.lsn, -1::bigint AS shard, r.*
FROM ` + logEndSQL + ` w
CROSS JOIN LATERAL (
    SELECT {columns} FROM {outbox} o
    WHERE w.lsn IS NOT NULL AND o.published_at IS NULL AND (o.available_at IS NULL OR o.available_at <= now()) {exclude}
      AND o.id >= (
        SELECT min(m.id)
        FROM (
            SELECT a.id
            FROM (SELECT u.shard, ($1::bigint[])[u.shard::int + 1] AS floor FROM unnest({shards}) AS u(shard) OFFSET 0) s
            CROSS JOIN LATERAL (SELECT o.id FROM {outbox} o
                                WHERE {shard} = s.shard AND {normal} AND o.id > s.floor {exclude} ORDER BY o.id LIMIT 1) a
            UNION ALL
            SELECT d.id FROM unnest($4::bigint[]) AS d(id)
        ) m
        WHERE $5::int[] IS NOT NULL AND $7::bigint IS NOT NULL)
    ORDER BY o.id LIMIT $2::int {lock}
) r`

	// namedRowsSQL reads the rows in $4, which lie in shards of the claim. The parameters are shardRowsSQL's.
	namedRowsSQL = `
SELECT w.lsn, r.*
FROM ` + logEndSQL + ` w
CROSS JOIN LATERAL (
    SELECT {shard} AS shard, {columns} FROM {outbox} o
    WHERE w.lsn IS NOT NULL AND $1::bigint[] IS NOT NULL AND $5::int[] IS NOT NULL AND $7::bigint IS NOT NULL
      AND o.id = ANY ($4::bigint[]) AND {shard} = ANY ({shards})
      AND o.published_at IS NULL AND (o.available_at IS NULL OR o.available_at <= now()) {exclude}
    ORDER BY o.id LIMIT $2::int {lock}
) r`

	// lockNamedSQL locks the shards of the pending rows in $2 as far as they are free.
	lockNamedSQL = `
SELECT count(*), set_config('outbox_relay.shards', coalesce(array_agg(c.shard), '{}')::text, true)
FROM (SELECT DISTINCT {shard}::int AS shard FROM {outbox} o WHERE o.id = ANY ($2::bigint[]) AND o.published_at IS NULL OFFSET 0) c
WHERE {try}`

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

	markSQL   = `UPDATE {outbox} o SET published_at = clock_timestamp() WHERE o.id = ANY ($1::bigint[])`
	deleteSQL = `DELETE FROM {outbox} o WHERE o.id = ANY ($1::bigint[])`

	// pendingOfSQL are those of the rows in $1, with the message ids in $2, that are pending.
	pendingOfSQL = `
SELECT o.id FROM unnest($1::bigint[], $2::uuid[]) AS u(id, message_id)
JOIN {outbox} o ON o.id = u.id AND o.message_id = u.message_id
WHERE o.published_at IS NULL`

	// lockPendingOfSQL locks them as far as nobody else has them locked.
	lockPendingOfSQL = pendingOfSQL + `
FOR UPDATE OF o SKIP LOCKED`
)

// statements are the constants above with the names of one table in them.
type statements struct {
	outbox, parked, dead string
	// hasJSON: the table has the column payload_json, see columns.go.
	hasJSON bool
	// filter selects the pipeline's rows; nil: all of them.
	filter func(topic, typ string) string
}

func newStatements(schema, table string) statements {
	name := func(suffix string) string { return pgx.Identifier{schema, table + suffix}.Sanitize() }
	return statements{outbox: name(""), parked: name("_parked"), dead: name("_dead_letters")}
}

// others leaves out the rows of other pipelines, given the columns of topic and type.
func (s statements) others(topic, typ string) string {
	if s.filter == nil {
		return ""
	}
	return " AND (" + s.filter(topic, typ) + ")"
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
			"{columns}", columnsSQL, "{payload}", PayloadSQL(s.hasJSON), "{shards}", shardsSQL, "{exclude}", exclude, "{lock}", lock, "{log_end}", endOfLogSQL,
		).Replace(sql)
	}
	return strings.NewReplacer("{outbox}", s.outbox, "{parked}", s.parked, "{dead}", s.dead, "{regclass}", s.literal()).Replace(sql)
}

// claimStatements are the statements of one claim.
type claimStatements struct {
	lock       string
	read       string
	readAround string
	// lockNamed, named and namedAround are for rows that the claim names.
	lockNamed          string
	named, namedAround string
}

func (s statements) claim(o *Options) claimStatements {
	exclude := notHeld(o.Ordering) + s.others("o.topic", "o.type")
	perShard, restricted := "$2::int", anyEntrySQL
	if o.Ordering == OrderKey {
		perShard = keyPerShardSQL
	}
	try := tryShardSQL
	if s.filter != nil {
		try, restricted = tryPipelineSQL, "true"
	}
	expand := func(sql, lock string) string {
		return s.expand(strings.NewReplacer(
			"{some}", someSQL, "{due}", dueIDsSQL, "{ceiling}", strings.ReplaceAll(ceilingSQL, "{restricted}", restricted),
			"{per_shard}", perShard, "{try}", try,
		).Replace(sql), exclude, lock)
	}
	rows := func(read, rows, lock string) string {
		return expand(strings.ReplaceAll(read, "{rows}", rows), lock)
	}
	// The class of the pipeline is the third parameter here.
	named := expand(strings.ReplaceAll(lockNamedSQL, "{try}", strings.ReplaceAll(try, "$7", "$3")), "")
	c := claimStatements{
		lockNamed:   named,
		named:       rows(readSQL, namedRowsSQL, "FOR UPDATE OF o NOWAIT"),
		namedAround: rows(readAroundSQL, namedRowsSQL, ""),
	}
	switch o.Ordering {
	case OrderNone:
		// Nobody's order is at stake: what is locked is passed over.
		c.lock = lockNoneSQL
		c.read = rows(readSQL, shardRowsSQL, "FOR UPDATE OF o SKIP LOCKED")
		c.readAround = c.read
		c.lockNamed = lockNoneNamedSQL
		c.named = rows(readSQL, namedRowsSQL, "FOR UPDATE OF o SKIP LOCKED")
		c.namedAround = c.named
	case OrderTotal:
		c.lock = expand(lockTotalSQL, "")
		c.read = rows(readSQL, totalRowsSQL, "FOR UPDATE OF o NOWAIT")
		c.readAround = rows(readAroundSQL, totalRowsSQL, "")
	case OrderKey:
		c.lock = expand(lockKeySQL, "")
		c.read = rows(readSQL, shardRowsSQL, "FOR UPDATE OF o NOWAIT")
		c.readAround = rows(readAroundSQL, shardRowsSQL, "")
	}
	return c
}
