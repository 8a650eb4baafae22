-- A JSON payload as text. A text that is inserted into a bytea is taken for its
-- escape format: {"path":"C:\\temp"} loses a backslash, and \" is refused.
-- NOT VALID: the rows there are have no payload_json, and need no look while
-- writers wait. The next migration validates, beside them.
ALTER TABLE {{.Outbox}}
    ADD COLUMN payload_json json,
    ADD CONSTRAINT {{.Name "_payload_or_payload_json"}} CHECK (payload IS NULL OR payload_json IS NULL) NOT VALID;

COMMENT ON COLUMN {{.Outbox}}.payload_json IS 'instead of payload, for writers that have text: sent as written, in UTF-8';

-- Who may write or read payload, column by column, may do so here.
DO {{.Quote}}
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT a.attrelid::regclass AS outbox, acl.privilege_type AS privilege,
               CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END AS grantee,
               CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS option
        FROM pg_attribute a CROSS JOIN aclexplode(a.attacl) acl
        WHERE a.attrelid = {{.Literal .Outbox}}::regclass AND a.attname = 'payload'
    LOOP
        EXECUTE format('GRANT %s (payload_json) ON %s TO %s%s', granted.privilege, granted.outbox, granted.grantee, granted.option);
    END LOOP;

    -- CREATE OR REPLACE keeps the function's owner and grants, and not this.
    PERFORM set_config('outbox_relay.publish_definer', (SELECT p.prosecdef::text FROM pg_proc p
        WHERE p.oid = to_regprocedure({{.Literal (print .Publish "(text, text, text, jsonb, jsonb)")}})), true);
END
{{.Quote}};

-- A jsonb is sent as PostgreSQL prints it, a json as it was written. An untyped
-- literal or parameter has to go on being jsonb, for which a text type is
-- preferred to the domain that stands for it beside json.
CREATE OR REPLACE FUNCTION {{.Publish}}(topic text, key text, type text, payload jsonb, headers jsonb DEFAULT '{}')
RETURNS uuid LANGUAGE sql VOLATILE AS {{.Quote}}
    INSERT INTO {{.Outbox}} (topic, key, type, payload_json, headers)
    VALUES ($1, $2, $3, $4::json, coalesce($5, '{}'))
    RETURNING message_id
{{.Quote}};

DO {{.Quote}}
BEGIN
    IF current_setting('outbox_relay.publish_definer') = 'true' THEN
        ALTER FUNCTION {{.Publish}}(text, text, text, jsonb, jsonb) SECURITY DEFINER;
    END IF;
END
{{.Quote}};

CREATE FUNCTION {{.Publish}}(topic text, key text, type information_schema.character_data, payload json, headers jsonb DEFAULT '{}')
RETURNS uuid LANGUAGE sql VOLATILE AS {{.Quote}}
    INSERT INTO {{.Outbox}} (topic, key, type, payload_json, headers)
    VALUES ($1, $2, $3, $4, coalesce($5, '{}'))
    RETURNING message_id
{{.Quote}};

CREATE FUNCTION {{.Publish}}(topic text, key uuid, type text, payload jsonb, headers jsonb DEFAULT '{}')
RETURNS uuid LANGUAGE sql VOLATILE AS {{.Quote}} SELECT {{.Publish}}($1, $2::text, $3, $4, $5) {{.Quote}};

CREATE FUNCTION {{.Publish}}(topic text, key uuid, type information_schema.character_data, payload json, headers jsonb DEFAULT '{}')
RETURNS uuid LANGUAGE sql VOLATILE AS {{.Quote}} SELECT {{.Publish}}($1, $2::text, $3, $4, $5) {{.Quote}};

CREATE FUNCTION {{.Publish}}(topic text, key bigint, type text, payload jsonb, headers jsonb DEFAULT '{}')
RETURNS uuid LANGUAGE sql VOLATILE AS {{.Quote}} SELECT {{.Publish}}($1, $2::text, $3, $4, $5) {{.Quote}};

CREATE FUNCTION {{.Publish}}(topic text, key bigint, type information_schema.character_data, payload json, headers jsonb DEFAULT '{}')
RETURNS uuid LANGUAGE sql VOLATILE AS {{.Quote}} SELECT {{.Publish}}($1, $2::text, $3, $4, $5) {{.Quote}};

-- A relay of an older release, which may run beside, reads payload alone: it
-- would send a tombstone. So the bytes stand there for now, whichever column they
-- were written to; relays read both, and a later release drops the trigger.
CREATE FUNCTION {{.Table "_payload_bytes"}}() RETURNS trigger LANGUAGE plpgsql AS {{.Quote}}
BEGIN
    NEW.payload := pg_catalog.convert_to(NEW.payload_json::text, CASE pg_catalog.getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END);
    NEW.payload_json := NULL;
    RETURN NEW;
END
{{.Quote}};

CREATE TRIGGER {{.Name "_payload_bytes"}} BEFORE INSERT ON {{.Outbox}}
    FOR EACH ROW WHEN (NEW.payload IS NULL AND NEW.payload_json IS NOT NULL)
    EXECUTE FUNCTION {{.Table "_payload_bytes"}}();
