-- The order service's own tables. The outbox is made by `relay migrate`.

-- What a customer may still owe for orders that are not paid.
CREATE TABLE IF NOT EXISTS accounts (
    customer     text PRIMARY KEY,
    credit_cents bigint NOT NULL,
    CONSTRAINT within_credit CHECK (credit_cents >= 0)
);

CREATE TABLE IF NOT EXISTS orders (
    id          text PRIMARY KEY,
    customer    text   NOT NULL REFERENCES accounts,
    total_cents bigint NOT NULL CHECK (total_cents > 0),
    status      text   NOT NULL CHECK (status IN ('placed', 'paid', 'shipped', 'cancelled')),
    placed_at   timestamptz NOT NULL DEFAULT now()
);

-- A voucher is good for one order.
CREATE TABLE IF NOT EXISTS vouchers (
    code     text PRIMARY KEY,
    order_id text REFERENCES orders
);

-- Evidence for the demo's tally; a service of yours needs neither of these.
-- The events that committed, written in the transaction that caused them:
CREATE TABLE IF NOT EXISTS order_events (
    message_id uuid   PRIMARY KEY,
    outbox_id  bigint NOT NULL,
    order_id   text   NOT NULL,
    type       text   NOT NULL
);

-- And those that were rolled back, written after the fact:
CREATE TABLE IF NOT EXISTS undone_events (
    message_id uuid PRIMARY KEY,
    order_id   text NOT NULL,
    type       text NOT NULL,
    reason     text NOT NULL
);
