-- The order service's own table. Inbox and outbox beside it are made by
-- `relay migrate`.

CREATE TABLE IF NOT EXISTS orders (
    id          text   PRIMARY KEY,
    customer    text   NOT NULL,
    total_cents bigint NOT NULL CHECK (total_cents > 0),
    item        text   NOT NULL,
    quantity    bigint NOT NULL CHECK (quantity > 0),
    status      text   NOT NULL DEFAULT 'placed' CHECK (status IN ('placed', 'confirmed', 'cancelled')),
    -- What the other services said last.
    payment     text   NOT NULL DEFAULT 'pending' CHECK (payment IN ('pending', 'taken', 'refused', 'refunded')),
    stock       text   NOT NULL DEFAULT 'pending' CHECK (stock IN ('pending', 'reserved', 'refused', 'released'))
);
