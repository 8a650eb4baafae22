-- The inbox table: who has processed which message. A row is written in the
-- transaction of the message's effect; see docs/inbox.md.
CREATE TABLE {{.Table ""}} (
    message_id       uuid        NOT NULL,
    -- When the consumer had the message in its hands, if it said so, and when
    -- the transaction of the effect began. Both are there from the start, so
    -- that a message costs one INSERT and no UPDATE.
    received_at      timestamptz NOT NULL DEFAULT now(),
    processed_at     timestamptz NOT NULL DEFAULT now(),
    -- Where the message was read: Kafka's topic, partition and offset, or a
    -- queue.
    source_offset    bigint,
    source_partition integer,
    consumer         text        NOT NULL CHECK (consumer <> ''),
    source           text,
    -- The only index: pruning reads the table as it lies on the disk instead of
    -- making each message pay for an index by time.
    PRIMARY KEY (consumer, message_id)
) WITH (
    -- Rows are only inserted, and deleted by the batch: clean up after some
    -- thousand of them instead of after a fifth of the table.
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.1
);

COMMENT ON TABLE {{.Table ""}} IS 'Messages that a consumer has processed: a row is written in the transaction of the effect';
COMMENT ON COLUMN {{.Table ""}}.received_at IS 'when the consumer first had the message, by its own clock; else as processed_at';
COMMENT ON COLUMN {{.Table ""}}.processed_at IS 'when the transaction of the effect began; retention counts from here';

-- The newest sequence that a consumer has processed of each topic and key, for
-- consumers that check the order. Empty where nobody does.
CREATE TABLE {{.Table "_order"}} (
    sequence   bigint      NOT NULL,
    previous   bigint, -- what sequence was before the last message; null at first
    updated_at timestamptz NOT NULL DEFAULT now(),
    consumer   text        NOT NULL CHECK (consumer <> ''),
    topic      text        NOT NULL,
    key        bytea       NOT NULL
) WITH (
    -- Updates change no index and find room on their page.
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0
);

-- A key is as long as its producer likes, so the index holds its hash.
CREATE UNIQUE INDEX {{.Name "_order_key_idx"}} ON {{.Table "_order"}} (consumer, topic, sha256(key));

COMMENT ON TABLE {{.Table "_order"}} IS 'The newest message-sequence that a consumer has processed of each topic and key';

-- For consumers in any language: true when the message is new to the consumer
-- and now claimed by this transaction, false when it was processed before.
-- Waits while another transaction has the claim. Call it first in the
-- transaction of the effect, and do nothing where it is false.
CREATE FUNCTION {{.Table "_claim"}}(consumer text, message_id uuid, source text DEFAULT NULL, source_partition integer DEFAULT NULL, source_offset bigint DEFAULT NULL)
RETURNS boolean LANGUAGE sql VOLATILE AS {{.Quote}}
    WITH claimed AS (
        INSERT INTO {{.Table ""}} (consumer, message_id, source, source_partition, source_offset)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (consumer, message_id) DO NOTHING
        RETURNING 1
    )
    SELECT EXISTS (SELECT FROM claimed)
{{.Quote}};
