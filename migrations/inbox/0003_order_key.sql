-- Under a publication FOR ALL TABLES rows of a table without a primary key can be
-- neither updated nor deleted. The unique index is on an expression, which cannot
-- be one. Consumers that check the order wait while the table is written again,
-- some seconds for a million keys; nobody else does. Who made a key, or
-- partitions, of his own keeps them.
DO {{.Quote}}
BEGIN
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = {{.Literal (.Table "_order")}}::regclass AND c.relkind = 'r'
               AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)) THEN
        ALTER TABLE {{.Table "_order"}} ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;
    END IF;
END
{{.Quote}};
