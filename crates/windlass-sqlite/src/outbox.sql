-- Tasks on their way from this file to a store elsewhere. Part of the application's own tables: its migrations run this. To run
-- it again changes nothing. `written_at`: microseconds since 1970. `refused`: why the store will never take it; a relay leaves
-- such a row alone.
CREATE TABLE IF NOT EXISTS windlass_outbox (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    written_at INTEGER NOT NULL,
    queue TEXT NOT NULL,
    push TEXT NOT NULL,
    refused TEXT
);
CREATE INDEX IF NOT EXISTS windlass_outbox_waiting ON windlass_outbox (place) WHERE refused IS NULL;
