-- The stock service's own tables. Inbox and outbox beside them are made by
-- `relay migrate`.

CREATE TABLE IF NOT EXISTS items (
    item      text   PRIMARY KEY,
    available bigint NOT NULL CHECK (available >= 0)
);

-- What was reserved for an order, and as a negative number what was released.
-- The order is not unique, on purpose: if a message were processed twice, two
-- reservations would show it.
CREATE TABLE IF NOT EXISTS reservations (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id text   NOT NULL,
    item     text   NOT NULL REFERENCES items,
    quantity bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS reservations_of_order ON reservations (order_id);
