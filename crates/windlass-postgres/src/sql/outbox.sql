-- Tasks on their way from this database to a store elsewhere. Part of the application's own tables: its migrations run this,
-- in the schema of its choice. To run it again changes nothing.
CREATE TABLE IF NOT EXISTS windlass_outbox (
    place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    queue text NOT NULL,
    push text NOT NULL,
    refused text -- why the store will never take it; a relay leaves it alone
);
CREATE INDEX IF NOT EXISTS windlass_outbox_waiting ON windlass_outbox (place) WHERE refused IS NULL;
CREATE OR REPLACE FUNCTION windlass_outbox_written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('windlass_outbox', '');
    RETURN NULL;
END $$;
-- Wakes relays with the commit. Without it they look once a second.
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = 'windlass_outbox'::regclass AND t.tgname = 'windlass_outbox_written')
    THEN
        CREATE TRIGGER windlass_outbox_written AFTER INSERT ON windlass_outbox
        FOR EACH STATEMENT EXECUTE FUNCTION windlass_outbox_written();
    END IF;
END $$;
