package outbox

// insertSQL inserts all messages in the order of the arrays: the rows are
// sorted before the ids are drawn, so ids ascend in the messages' order, and
// are returned in it. Every parameter has a cast, so that its type never
// depends on what a driver or a mode of it guesses. The first %s is the table,
// the second empty or notifySQL with its parameter.
const insertSQL = `INSERT INTO %s (message_id, topic, key, type, payload, content_type, headers, available_at)
SELECT m.message_id, m.topic, m.key, m.type, m.payload, m.content_type, m.headers, m.available_at
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::jsonb[], $8::timestamptz[])
    WITH ORDINALITY AS m (message_id, topic, key, type, payload, content_type, headers, available_at, n)%s
ORDER BY m.n
RETURNING id`

// insertJSONSQL is insertSQL for a table with the column payload_json.
const insertJSONSQL = `INSERT INTO %s (message_id, topic, key, type, payload, content_type, headers, available_at, payload_json)
SELECT m.message_id, m.topic, m.key, m.type, m.payload, m.content_type, m.headers, m.available_at, m.payload_json
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::jsonb[], $8::timestamptz[], $9::json[])
    WITH ORDINALITY AS m (message_id, topic, key, type, payload, content_type, headers, available_at, payload_json, n)%s
ORDER BY m.n
RETURNING id`

// notifySQL wakes the relays at commit; the function is called once. %d is its
// parameter's number.
const notifySQL = `
    CROSS JOIN pg_notify($%d::text, '')`
