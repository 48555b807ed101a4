-- Limits and turns of keys, memos, notes, unique keys until the start.

ALTER TABLE windlass.live
    ADD COLUMN memo text,
    ADD COLUMN waits_for text COLLATE "C",
    -- The unique key is given back at the first claim.
    ADD COLUMN brief boolean;
ALTER TABLE windlass.finished ADD COLUMN memo text;
ALTER TABLE windlass.kept ADD COLUMN memo text;

-- A ready task without a key is in the first two of these, one with a key in the others: so a queue without keys pays for
-- nothing else, and whoever takes from one key reads nothing of the others. Programs of version 1 that still run walk a queue
-- without an index until they are replaced.
DROP INDEX windlass.live_ready;
DROP INDEX windlass.live_ready_name;
CREATE INDEX live_plain ON windlass.live (queue, rank, seq) WHERE state = 1 AND key IS NULL;
CREATE INDEX live_plain_name ON windlass.live (queue, name, rank, seq) WHERE state = 1 AND key IS NULL;
CREATE INDEX live_keyed ON windlass.live (queue, key, rank, seq) WHERE state = 1 AND key IS NOT NULL;
CREATE INDEX live_keyed_name ON windlass.live (queue, key, name, rank, seq) WHERE state = 1 AND key IS NOT NULL;
CREATE INDEX live_keyed_rank ON windlass.live (queue, rank, seq) WHERE state = 1 AND key IS NOT NULL;

-- Limits. `rule` says everything; the other columns are what statements must know of it: the queue that it is about, when it
-- is about one, whether it limits starts, and what it allows to run and to wait.
CREATE TABLE windlass.rule (
    subject text COLLATE "C" PRIMARY KEY,
    rule text NOT NULL,
    queue text COLLATE "C",
    starts boolean NOT NULL,
    concurrent boolean NOT NULL,
    length bigint
);
-- Gates: until when one is held, and when the next start is due by its rate.
CREATE TABLE windlass.gate (
    gate text COLLATE "C" PRIMARY KEY,
    held_until bigint,
    next bigint
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
CREATE INDEX gate_held ON windlass.gate (held_until) WHERE held_until IS NOT NULL;
-- Changes of limits and holds are counted here: a claim reads them again when this has moved.
INSERT INTO windlass.meta VALUES ('limits', 0);
-- Where the next turn of a queue with keys begins.
CREATE TABLE windlass.turn (
    queue text COLLATE "C" PRIMARY KEY,
    key text COLLATE "C",
    rest bigint NOT NULL
) WITH (fillfactor = 50);

CREATE SEQUENCE windlass.note_version;
CREATE TABLE windlass.note (
    space text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    value text NOT NULL,
    version bigint NOT NULL,
    expires bigint NOT NULL,
    PRIMARY KEY (space, key)
);
CREATE INDEX note_expires ON windlass.note (expires);

-- How many tasks of a queue wait. One statement: what is added up meanwhile is counted once.
CREATE FUNCTION windlass.waiting_in(queue_name text) RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT coalesce((SELECT q.scheduled + q.ready + q.parked FROM windlass.queue q WHERE q.name = queue_name), 0)
        + coalesce((SELECT sum(d.scheduled + d.ready + d.parked) FROM windlass.delta d WHERE d.queue = queue_name), 0)::bigint
$$;

-- As before, and `full LENGTH` (with a space, so it is no id) when the queue takes no more. What a unique key says about
-- replacing is for the Rust library: here the first task stays as it is.
CREATE OR REPLACE FUNCTION windlass.push_task(
    task_id text, task_name text, task_queue text, task_priority integer,
    after_micros bigint, at_micros bigint, expires_micros bigint, keep_micros bigint,
    unique_key text, unique_micros bigint, task_key text, task_workflow text, flows boolean, stored text
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    now bigint := windlass.micros();
    due bigint := coalesce(at_micros, now + after_micros, 0);
    begins smallint := CASE WHEN due > now THEN 0 ELSE 1 END;
    holder text;
    most bigint;
BEGIN
    -- Pushes into a queue that has a length go one after the other.
    SELECT r.length INTO most FROM windlass.rule r WHERE r.subject = 'queue:' || task_queue AND r.length IS NOT NULL FOR UPDATE;
    IF unique_key IS NOT NULL THEN
        IF EXISTS (SELECT 1 FROM windlass.live l WHERE l.id = task_id) THEN
            RETURN task_id;
        END IF;
        INSERT INTO windlass.taken AS t (key, id, until) VALUES (unique_key, task_id, now + unique_micros)
        ON CONFLICT (key) DO UPDATE SET id = excluded.id, until = excluded.until WHERE t.until <= now;
        IF NOT FOUND THEN
            SELECT t.id INTO holder FROM windlass.taken t WHERE t.key = unique_key;
            RETURN holder;
        END IF;
    END IF;
    IF most IS NOT NULL AND windlass.waiting_in(task_queue) >= most AND NOT EXISTS (
        SELECT 1 FROM windlass.live l WHERE l.id = task_id UNION ALL SELECT 1 FROM windlass.finished f WHERE f.id = task_id
        UNION ALL SELECT 1 FROM windlass.kept k WHERE k.id = task_id)
    THEN
        DELETE FROM windlass.taken t WHERE t.key = unique_key AND t.id = task_id;
        RETURN 'full ' || most;
    END IF;
    INSERT INTO windlass.live (id, queue, name, priority, state, at, rank, enqueued_at, has_flow, expires, keep, guard, brief,
        key, workflow, body)
    VALUES (task_id, task_queue, task_name, task_priority, begins, CASE begins WHEN 0 THEN due ELSE 0 END,
        CASE begins WHEN 0 THEN due ELSE now END - task_priority * 300000000::bigint, now, flows, expires_micros, keep_micros,
        CASE WHEN unique_micros IS NULL THEN unique_key END,
        CASE WHEN unique_key IS NOT NULL AND unique_micros IS NULL AND stored::json -> 'unique' ->> 'hold' = 'started' THEN true END,
        task_key, task_workflow, stored)
    ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN task_id;
    END IF;
    -- After the insert: one that waited for a settle of the same task sees what the settle left.
    IF EXISTS (SELECT 1 FROM windlass.finished f WHERE f.id = task_id)
        OR EXISTS (SELECT 1 FROM windlass.kept k WHERE k.id = task_id)
    THEN
        DELETE FROM windlass.live l WHERE l.id = task_id;
        DELETE FROM windlass.taken t WHERE t.key = unique_key AND t.id = task_id;
        RETURN task_id;
    END IF;
    INSERT INTO windlass.delta (queue, scheduled, ready) VALUES (task_queue, 1 - begins, begins);
    IF EXISTS (SELECT 1 FROM windlass.waiting w WHERE w.until > windlass.micros()) THEN
        PERFORM pg_notify('@channel', CASE begins WHEN 1 THEN 'q ' || task_queue ELSE 'd' END);
    END IF;
    RETURN NULL;
END $$;

-- Enqueues a task from any language, in the caller's transaction; answers its id, or that of the task that has its id or its
-- unique key already. A full queue is an error. `args`: an object of arguments by name, or an array of arguments by position.
CREATE OR REPLACE FUNCTION windlass.enqueue(
    name text, args jsonb DEFAULT '{}', queue text DEFAULT 'default', priority integer DEFAULT 5,
    delay interval DEFAULT NULL, run_at timestamptz DEFAULT NULL, expires timestamptz DEFAULT NULL, id text DEFAULT NULL,
    key text DEFAULT NULL, unique_key text DEFAULT NULL, unique_for interval DEFAULT NULL, headers jsonb DEFAULT NULL,
    retries integer DEFAULT NULL, result_ttl interval DEFAULT NULL
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    task_id text := coalesce(enqueue.id, gen_random_uuid()::text);
    word text;
    answer text;
    stored jsonb;
BEGIN
    FOREACH word IN ARRAY ARRAY[enqueue.name, enqueue.queue, task_id] LOOP
        IF word IS NULL OR word !~ '^[!-~]{1,255}$' THEN
            RAISE EXCEPTION 'names, queues and ids have 1 to 255 visible ASCII characters without spaces, not "%"', left(word, 40)
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    FOREACH word IN ARRAY ARRAY[enqueue.key, enqueue.unique_key] LOOP
        IF octet_length(word) NOT BETWEEN 1 AND 255 OR word ~ '[[:cntrl:]]' THEN
            RAISE EXCEPTION 'keys have 1 to 255 bytes without control characters' USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    IF enqueue.priority IS NULL OR enqueue.priority NOT BETWEEN 0 AND 9 THEN
        RAISE EXCEPTION 'a priority is 0 (last) to 9 (first), not %', enqueue.priority USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF coalesce(jsonb_typeof(enqueue.args), 'object') NOT IN ('object', 'array') THEN
        RAISE EXCEPTION 'arguments are a JSON object or an array' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF octet_length(enqueue.args::text) > 4194304 THEN
        RAISE EXCEPTION 'arguments take % bytes, the limit is 4194304; store the data elsewhere and send a reference',
            octet_length(enqueue.args::text) USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF enqueue.retries NOT BETWEEN 0 AND 9999 OR enqueue.delay > interval '10 years' OR enqueue.run_at > now() + interval '10 years'
    THEN
        RAISE EXCEPTION 'retries are 0 to 9999, delays at most ten years' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    stored := jsonb_strip_nulls(jsonb_build_object(
        'v', 1,
        'key', enqueue.key,
        'unique', CASE WHEN enqueue.unique_key IS NOT NULL THEN jsonb_build_object('key', enqueue.unique_key,
            'window', (extract(epoch FROM enqueue.unique_for) * 1000000)::bigint::text || 'us') END,
        'expires', to_char(enqueue.expires AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'retries', enqueue.retries,
        'result_ttl', (extract(epoch FROM enqueue.result_ttl) * 1000000)::bigint::text || 'us'));
    IF enqueue.headers IS NOT NULL THEN
        stored := stored || jsonb_build_object('headers', enqueue.headers);
    END IF;
    IF enqueue.args NOT IN ('{}', '[]') THEN
        stored := stored || jsonb_build_object('args',
            CASE jsonb_typeof(enqueue.args) WHEN 'array' THEN jsonb_build_array(enqueue.args) ELSE enqueue.args END);
    END IF;
    answer := windlass.push_task(task_id, enqueue.name, enqueue.queue, enqueue.priority,
        (extract(epoch FROM enqueue.delay) * 1000000)::bigint, (extract(epoch FROM enqueue.run_at) * 1000000)::bigint,
        (extract(epoch FROM enqueue.expires) * 1000000)::bigint, (extract(epoch FROM enqueue.result_ttl) * 1000000)::bigint,
        enqueue.unique_key, (extract(epoch FROM enqueue.unique_for) * 1000000)::bigint, enqueue.key, NULL, false,
        stored::text);
    IF answer LIKE 'full %' THEN
        RAISE EXCEPTION 'the queue "%" is full: its limit is % waiting tasks', enqueue.queue, split_part(answer, ' ', 2)
            USING ERRCODE = 'program_limit_exceeded', HINT = 'try again later, or change the limit with `windlass limit`';
    END IF;
    RETURN coalesce(answer, task_id);
END $$;
