-- The payment service's own tables. Inbox and outbox beside them are made by
-- `relay migrate`.

CREATE TABLE IF NOT EXISTS accounts (
    customer      text   PRIMARY KEY,
    balance_cents bigint NOT NULL CHECK (balance_cents >= 0)
);

-- What was taken for an order, and as a negative number what was given back.
-- The order is not unique, on purpose: if a message were processed twice, two
-- payments would show it.
CREATE TABLE IF NOT EXISTS payments (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id text   NOT NULL,
    customer text   NOT NULL REFERENCES accounts,
    cents    bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS payments_of_order ON payments (order_id);
