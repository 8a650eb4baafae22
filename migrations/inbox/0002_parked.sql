-- Messages that a consumer could not process and has put aside, so that those
-- behind them go on; see docs/inbox-kafka.md.
CREATE TABLE {{.Table "_parked"}} (
    number           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer         text        NOT NULL CHECK (consumer <> ''),
    -- What makes it the same message when it comes again: its id or, where it
    -- has none, where it was read.
    identity         text        NOT NULL,
    message_id       uuid, -- null: the message has none
    topic            text        NOT NULL,
    key              bytea,
    type             text        NOT NULL,
    payload          bytea,
    content_type     text        NOT NULL,
    headers          jsonb       NOT NULL CHECK (jsonb_typeof(headers) = 'object'),
    sequence         bigint      NOT NULL,
    time             timestamptz,
    replayed         boolean     NOT NULL,
    source           text,
    source_partition integer,
    source_offset    bigint,
    attempts         integer     NOT NULL CHECK (attempts >= 0),
    error            text        NOT NULL,
    parked_at        timestamptz NOT NULL DEFAULT now(),
    last_failed_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (consumer, identity)
);

COMMENT ON TABLE {{.Table "_parked"}} IS 'Messages that a consumer could not process and has put aside';
COMMENT ON COLUMN {{.Table "_parked"}}.number IS 'ascends in the order in which messages were parked';
