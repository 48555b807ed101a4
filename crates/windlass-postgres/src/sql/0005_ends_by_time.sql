-- Bridges look every few seconds for tasks that were cancelled or expired. They are few among those that succeeded, and a
-- success costs nothing more.
CREATE INDEX finished_otherwise ON windlass.finished (finished_at) WHERE state <> 4;
