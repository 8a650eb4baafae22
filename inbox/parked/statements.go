package parked

// In all of them %s is the table, and every parameter has a cast.
const (
	// parkSQL keeps what was there when the message is parked already, and
	// says what went wrong the last time.
	parkSQL = `INSERT INTO %s AS p (consumer, identity, message_id, topic, key, type, payload, content_type, headers, sequence, time, replayed, source, source_partition, source_offset, attempts, error)
VALUES ($1::text, coalesce($2::text, gen_random_uuid()::text), $3::uuid, $4::text, $5::bytea, $6::text, $7::bytea, $8::text, $9::text::jsonb, $10::bigint, $11::timestamptz, $12::boolean, $13::text, $14::int, $15::bigint, $16::int, $17::text)
ON CONFLICT (consumer, identity) DO UPDATE SET attempts = p.attempts + excluded.attempts, error = excluded.error, last_failed_at = now()`

	columns = `number, message_id::text, topic, key, type, payload, content_type, headers::text, sequence, time, replayed, source, source_partition, source_offset, attempts, error, parked_at, last_failed_at`

	// listSQL: an empty topic means all of them.
	listSQL = `SELECT ` + columns + ` FROM %s WHERE consumer = $1::text AND ($2::text = '' OR topic = $2::text) AND number > $3::bigint ORDER BY number LIMIT $4::bigint`

	// takeSQL waits for who has the message.
	takeSQL = `SELECT ` + columns + ` FROM %s WHERE consumer = $1::text AND number = $2::bigint FOR UPDATE`

	failSQL = `UPDATE %s SET attempts = attempts + 1, error = $3::text, last_failed_at = clock_timestamp() WHERE consumer = $1::text AND number = $2::bigint`

	removeSQL = `DELETE FROM %s WHERE consumer = $1::text AND number = $2::bigint`
)
