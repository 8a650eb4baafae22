-- Reads the table once, beside its readers and writers.
ALTER TABLE {{.Outbox}} VALIDATE CONSTRAINT {{.Name "_payload_or_payload_json"}};
