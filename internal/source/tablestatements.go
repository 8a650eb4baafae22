package source

// The statements that look at the table as a whole: what is pending in it, and
// what is past its retention.
const (
	// limitsSQL bounds a statement ($1) and its waiting for locks ($2), both in
	// milliseconds, for the transaction, and lifts the role's own bounds (see
	// settingsSQL). A SET for the session would stay behind in a pooler.
	limitsSQL = `SELECT set_config('statement_timeout', $1, true),
       set_config('lock_timeout', $2, true),
       set_config('idle_in_transaction_session_timeout', '30000', true),
       CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
            THEN set_config('transaction_timeout', '0', true) END,
       set_config('jit', 'off', true)`

	// pageSQL looks at the next $3 rows after id $1: the last id, how many there
	// are, the ids of those past the retention of $2 seconds, and in how many
	// seconds the next will be.
	pageSQL = `
SELECT max(p.id), count(*), array_agg(p.id ORDER BY p.id) FILTER (WHERE p.published_at < p.past),
       extract(epoch FROM min(p.published_at) FILTER (WHERE isfinite(p.published_at) AND p.published_at >= p.past) - min(p.past))::float8
FROM (SELECT o.id, o.published_at, now() - make_interval(secs => $2::float8) AS past
      FROM {outbox} o WHERE o.id > $1::bigint ORDER BY o.id LIMIT $3::int) p`

	// pruneSQL deletes the rows $1, unless somebody has them locked or has them
	// published again.
	pruneSQL = `
WITH victims AS MATERIALIZED (
    SELECT o.id FROM {outbox} o
    WHERE o.id = ANY ($1::bigint[]) AND o.published_at < now() - make_interval(secs => $2::float8)
    FOR UPDATE SKIP LOCKED
)
DELETE FROM {outbox} o WHERE o.id = ANY (ARRAY(SELECT v.id FROM victims v))`

	// headSQL counts the first $1 pending rows of each shard, by topic, and says
	// whether a shard may have had more. Its cost does not grow with the table.
	headSQL = `
WITH head AS MATERIALIZED (
    SELECT s.shard, r.topic, r.since
    FROM generate_series(0, 63) AS s(shard)
    CROSS JOIN LATERAL (
        SELECT * FROM (SELECT o.topic, o.created_at AS since FROM {outbox} o
                       WHERE {shard} = s.shard AND {normal} ORDER BY o.id LIMIT $1::int) a
        UNION ALL
        SELECT * FROM (SELECT o.topic, ` + dueSinceSQL + ` FROM {outbox} o
                       WHERE {shard} = s.shard AND {delayed} ORDER BY o.available_at LIMIT $1::int) b
    ) r
)
SELECT topic, count(*), ` + oldestAgeSQL + `,
       (SELECT coalesce(max(n), 0) >= $1::int FROM (SELECT count(*) AS n FROM head GROUP BY shard) x)
FROM head GROUP BY topic ORDER BY topic`

	// plannedSQL asks the planner how many rows are pending, which it knows from
	// the last ANALYZE and the table's present size.
	plannedSQL = `EXPLAIN (FORMAT JSON) SELECT FROM {outbox} o WHERE {normal}`

	// dueSinceSQL is since when a row waits. The earlier of its times says nothing
	// where it is minus infinity, as some drivers write their zero time.
	dueSinceSQL = `CASE WHEN isfinite(o.available_at) THEN o.available_at ELSE o.created_at END`

	// oldestAgeSQL is the age of the oldest of the times called since. An infinite
	// one has no age, and one in the future none yet.
	oldestAgeSQL = `coalesce(greatest(extract(epoch FROM clock_timestamp() - min(since) FILTER (WHERE isfinite(since))), 0), 0)::float8`

	// backlogSQL counts what is pending now, per topic.
	backlogSQL = `
SELECT topic, count(*), ` + oldestAgeSQL + `
FROM (
    SELECT o.topic, ` + dueSinceSQL + ` AS since
    FROM {outbox} o
    WHERE o.published_at IS NULL AND (o.available_at IS NULL OR o.available_at <= now())
) pending
GROUP BY topic ORDER BY topic`

	topicsSQL = `SELECT DISTINCT o.topic FROM {outbox} o WHERE o.published_at IS NULL ORDER BY 1 LIMIT 1000`
)
