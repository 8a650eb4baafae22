-- The shipping service's own tables, in its own database. The inbox beside
-- them is made by `relay migrate --only inbox`.

-- A shipment is a parcel that left the house. The order is not unique, on
-- purpose: if a message were processed twice, two parcels would show it.
CREATE TABLE IF NOT EXISTS shipments (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id   text NOT NULL,
    customer   text NOT NULL,
    shipped_at timestamptz NOT NULL DEFAULT now()
);

-- Evidence for the demo's tally; a service of yours does not need it. How many
-- duplicates each process was given and did not process again:
CREATE TABLE IF NOT EXISTS refusals (
    process  uuid   PRIMARY KEY,
    messages bigint NOT NULL
);
