-- What the broker refused: a row for each key that is held back by a failed
-- message, and for each failed message without a key. It vanishes when nothing
-- waits behind it any more.
CREATE TABLE {{.Table "_parked"}} (
    id              bigint      PRIMARY KEY, -- of the outbox row that failed
    message_id      uuid        NOT NULL,
    topic           text        NOT NULL,
    key             text,
    -- retrying: it failed less often than failures.max_attempts. parked: it
    -- waits for its next retry or for an operator. draining: it is out of the
    -- way, and the rows that waited behind it are being published in order.
    state           text        NOT NULL CHECK (state IN ('retrying', 'parked', 'draining')),
    attempts        integer     NOT NULL CHECK (attempts >= 0),
    reason          text        NOT NULL, -- a short word, as the metrics have it
    error           text        NOT NULL,
    first_failed_at timestamptz NOT NULL DEFAULT now(),
    last_failed_at  timestamptz NOT NULL DEFAULT now(),
    parked_at       timestamptz,
    next_retry_at   timestamptz NOT NULL DEFAULT now(), -- draining: now, or when it is its turn again
    CHECK (state <> 'parked' OR parked_at IS NOT NULL)
) WITH (
    -- Entries come and go; each claim asks whether there is any.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_cost_delay = 0
);

COMMENT ON TABLE {{.Table "_parked"}} IS 'Keys that are held back by a message that the broker refused';

-- A key is as long as its writer likes, so an index holds its hash.
CREATE INDEX {{.Name "_parked_key_idx"}} ON {{.Table "_parked"}} (hashtextextended(key, 0)) WHERE key IS NOT NULL;
CREATE INDEX {{.Name "_parked_retry_idx"}} ON {{.Table "_parked"}} (next_retry_at);

-- Messages that were given up: the outbox row as it was, and why.
CREATE TABLE {{.Table "_dead_letters"}} (
    id              bigint      NOT NULL, -- that it had in the outbox
    message_id      uuid        NOT NULL,
    topic           text        NOT NULL,
    key             text,
    type            text        NOT NULL,
    payload         bytea,
    content_type    text        NOT NULL,
    headers         jsonb       NOT NULL,
    available_at    timestamptz,
    created_at      timestamptz NOT NULL,
    attempts        integer     NOT NULL,
    reason          text        NOT NULL,
    error           text        NOT NULL,
    first_failed_at timestamptz NOT NULL,
    last_failed_at  timestamptz NOT NULL,
    dead_at         timestamptz NOT NULL DEFAULT now(),
    -- Ids begin anew after TRUNCATE ... RESTART IDENTITY of the outbox.
    PRIMARY KEY (id, message_id)
);

COMMENT ON TABLE {{.Table "_dead_letters"}} IS 'Messages that were given up; relay dead list shows them';

CREATE INDEX {{.Name "_dead_letters_message_idx"}} ON {{.Table "_dead_letters"}} (message_id);
CREATE INDEX {{.Name "_dead_letters_topic_idx"}} ON {{.Table "_dead_letters"}} (topic, dead_at);

-- What operators did: retries, skips, discards, replays.
CREATE TABLE {{.Table "_audit"}} (
    audit_id   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT now(),
    db_user    text        NOT NULL DEFAULT session_user,
    os_user    text        NOT NULL, -- user@host of the command, as it says itself
    action     text        NOT NULL, -- 'parked retry', 'dead discard' and so on
    id         bigint,
    message_id uuid,
    topic      text,
    key        text,
    details    jsonb       NOT NULL DEFAULT '{}'
);

COMMENT ON TABLE {{.Table "_audit"}} IS 'What operators did with parked keys, dead letters and published rows';
