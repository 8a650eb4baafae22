package inbox

// In all of them %s is the table, and every parameter has a cast, so that its
// type never depends on what a driver or a mode of it guesses.
const (
	// claimSQL writes one row, or none when the id is there. It waits for a
	// transaction that has written it and not ended.
	claimSQL = `INSERT INTO %s (consumer, message_id, received_at, source, source_partition, source_offset)
VALUES ($1::text, $2::uuid, coalesce($3::timestamptz, now()), $4::text, $5::int, $6::bigint)
ON CONFLICT (consumer, message_id) DO NOTHING`

	// claimBatchSQL returns the ids that it wrote. The arrays are sorted by id,
	// and rows are written in that order, so that two batches wait for each
	// other in one direction only.
	claimBatchSQL = `INSERT INTO %s (consumer, message_id, received_at, source, source_partition, source_offset)
SELECT $1::text, m.message_id, coalesce(m.received_at, now()), m.source, m.source_partition, m.source_offset
FROM unnest($2::uuid[], $3::timestamptz[], $4::text[], $5::int[], $6::bigint[])
    WITH ORDINALITY AS m (message_id, received_at, source, source_partition, source_offset, n)
ORDER BY m.n
ON CONFLICT (consumer, message_id) DO NOTHING
RETURNING message_id::text`

	// orderSQL is orderBatchSQL for one key, for a third of its cost.
	orderSQL = `INSERT INTO %s AS o (consumer, topic, key, sequence)
VALUES ($1::text, $2::text, $3::bytea, $4::bigint)
ON CONFLICT (consumer, topic, sha256(key)) DO UPDATE
SET previous = o.sequence, sequence = greatest(o.sequence, excluded.sequence), updated_at = now()
RETURNING coalesce(o.previous, 0)`

	// orderBatchSQL raises the newest sequence of each key, in the order of the
	// arrays, which is the same for everybody, and returns what it was before,
	// 0 for a new key. It takes the keys' rows until the transaction ends.
	orderBatchSQL = `INSERT INTO %s AS o (consumer, topic, key, sequence)
SELECT $1::text, m.topic, m.key, m.sequence
FROM unnest($2::text[], $3::bytea[], $4::bigint[]) WITH ORDINALITY AS m (topic, key, sequence, n)
ORDER BY m.n
ON CONFLICT (consumer, topic, sha256(key)) DO UPDATE
SET previous = o.sequence, sequence = greatest(o.sequence, excluded.sequence), updated_at = now()
RETURNING coalesce(o.previous, 0)`

	// savepointSQL and the two below stand for a transaction of one's own
	// within a *sql.Tx.
	savepointSQL         = `SAVEPOINT outbox_relay_inbox`
	releaseSavepointSQL  = `RELEASE SAVEPOINT outbox_relay_inbox`
	rollbackSavepointSQL = `ROLLBACK TO SAVEPOINT outbox_relay_inbox`
)
