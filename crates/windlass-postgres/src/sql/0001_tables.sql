-- Tables of the store. `windlass.` stands for the schema, `@channel` for its channel of notifications.
-- Times are microseconds since 1970. Words compare byte by byte: the same order on every server.

-- `version`, and `closed` while the store is closed.
CREATE TABLE windlass.meta (key text COLLATE "C" PRIMARY KEY, value bigint NOT NULL);
INSERT INTO windlass.meta VALUES ('version', 0);

CREATE FUNCTION windlass.micros() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

-- Tasks that have not ended.
--
--   state          at             index
--   0 scheduled    due            moment
--   1 ready        -              ready, ready_name
--   2 running      the lease ends moment
--   3 parked       parked since   moment, parked
CREATE TABLE windlass.live (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rank bigint NOT NULL,
    at bigint NOT NULL,
    fence bigint NOT NULL DEFAULT 0,
    enqueued_at bigint NOT NULL,
    started_at bigint,
    expires bigint,
    keep bigint,
    attempt integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    state smallint NOT NULL,
    priority smallint NOT NULL,
    cancel boolean NOT NULL DEFAULT false,
    has_flow boolean NOT NULL,
    id text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    node text COLLATE "C",
    guard text COLLATE "C",
    key text COLLATE "C",
    workflow text COLLATE "C",
    progress text,
    failure text,
    history text[],
    body text NOT NULL
) WITH (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0.2, autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE UNIQUE INDEX live_id ON windlass.live (id);
CREATE INDEX live_ready ON windlass.live (queue, rank, seq) WHERE state = 1;
CREATE INDEX live_ready_name ON windlass.live (queue, name, rank, seq) WHERE state = 1;
CREATE INDEX live_moment ON windlass.live (state, at) WHERE state <> 1;
CREATE INDEX live_parked ON windlass.live (name) WHERE state = 3;
CREATE INDEX live_cancel ON windlass.live (node) WHERE cancel;
CREATE INDEX live_expires ON windlass.live (expires) WHERE expires IS NOT NULL AND state <> 2;
CREATE INDEX live_key ON windlass.live (key) WHERE key IS NOT NULL;
CREATE INDEX live_workflow ON windlass.live (workflow) WHERE workflow IS NOT NULL;

-- Tasks that succeeded, were cancelled or expired: days, dropped whole when they are over. The states are
-- 4 succeeded, 5 dead, 6 cancelled, 7 expired.
CREATE TABLE windlass.finished (
    seq bigint NOT NULL,
    finished_at bigint NOT NULL,
    forget_at bigint,
    fence bigint NOT NULL,
    enqueued_at bigint NOT NULL,
    started_at bigint,
    keep bigint,
    attempt integer NOT NULL,
    crashes integer NOT NULL,
    state smallint NOT NULL,
    priority smallint NOT NULL,
    reason smallint,
    has_flow boolean NOT NULL,
    id text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    node text COLLATE "C",
    key text COLLATE "C",
    workflow text COLLATE "C",
    skipped text,
    progress text,
    failure text,
    history text[],
    result text,
    body text NOT NULL
) PARTITION BY RANGE (finished_at);
CREATE INDEX finished_id ON windlass.finished (id);
CREATE INDEX finished_seq ON windlass.finished (seq);
CREATE INDEX finished_at ON windlass.finished (finished_at);
CREATE INDEX finished_key ON windlass.finished (key) WHERE key IS NOT NULL;
CREATE INDEX finished_workflow ON windlass.finished (workflow) WHERE workflow IS NOT NULL;
-- Catches what ends on a day that nobody has made a partition for: a clock that was moved.
CREATE TABLE windlass.finished_other PARTITION OF windlass.finished DEFAULT WITH (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_cost_delay = 0
);

-- Dead letters, and results with a time of their own: both outlive days.
CREATE TABLE windlass.kept (LIKE windlass.finished, PRIMARY KEY (seq));
CREATE UNIQUE INDEX kept_id ON windlass.kept (id);
CREATE INDEX kept_dead ON windlass.kept (finished_at) WHERE state = 5;
CREATE INDEX kept_forget ON windlass.kept (forget_at) WHERE forget_at IS NOT NULL;
CREATE INDEX kept_key ON windlass.kept (key) WHERE key IS NOT NULL;
CREATE INDEX kept_workflow ON windlass.kept (workflow) WHERE workflow IS NOT NULL;

-- Unique keys and who has them; `until` when that is for a time and not until the task has ended.
CREATE TABLE windlass.taken (key text COLLATE "C" PRIMARY KEY, id text COLLATE "C" NOT NULL, until bigint);
CREATE INDEX taken_until ON windlass.taken (until) WHERE until IS NOT NULL;

-- The counts of each queue: what ticks have added up, and below what transactions have changed since. A row for each
-- change instead of one row for all: nobody waits for anybody.
CREATE TABLE windlass.queue (
    name text COLLATE "C" PRIMARY KEY,
    paused boolean NOT NULL DEFAULT false,
    used boolean NOT NULL DEFAULT false,
    scheduled bigint NOT NULL DEFAULT 0, ready bigint NOT NULL DEFAULT 0, running bigint NOT NULL DEFAULT 0,
    parked bigint NOT NULL DEFAULT 0, succeeded bigint NOT NULL DEFAULT 0, dead bigint NOT NULL DEFAULT 0,
    cancelled bigint NOT NULL DEFAULT 0, expired bigint NOT NULL DEFAULT 0,
    finished bigint NOT NULL DEFAULT 0 -- rows of windlass.finished
) WITH (fillfactor = 50);
CREATE TABLE windlass.delta (
    queue text COLLATE "C" NOT NULL,
    scheduled bigint NOT NULL DEFAULT 0, ready bigint NOT NULL DEFAULT 0, running bigint NOT NULL DEFAULT 0,
    parked bigint NOT NULL DEFAULT 0, succeeded bigint NOT NULL DEFAULT 0, dead bigint NOT NULL DEFAULT 0,
    cancelled bigint NOT NULL DEFAULT 0, expired bigint NOT NULL DEFAULT 0,
    finished bigint NOT NULL DEFAULT 0
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_cost_delay = 0
);

CREATE TABLE windlass.paused_name (name text COLLATE "C" PRIMARY KEY);

CREATE TABLE windlass.groups (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    size integer NOT NULL,
    policy text NOT NULL,
    after text NOT NULL,
    succeeded integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    completed boolean NOT NULL DEFAULT false,
    broken boolean NOT NULL DEFAULT false,
    touched_at bigint NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX groups_touched ON windlass.groups (touched_at);
CREATE INDEX groups_open ON windlass.groups (number) WHERE NOT completed;
CREATE TABLE windlass.arrival (
    number bigint NOT NULL,
    place integer NOT NULL,
    succeeded boolean NOT NULL,
    outcome text NOT NULL,
    PRIMARY KEY (number, place)
);

CREATE TABLE windlass.schedule (
    id text COLLATE "C" PRIMARY KEY,
    definition text NOT NULL,
    next bigint,
    paused boolean NOT NULL DEFAULT false,
    last_fired_at bigint,
    last_task text,
    fired bigint NOT NULL DEFAULT 0,
    missed bigint NOT NULL DEFAULT 0
);

CREATE TABLE windlass.node (
    id text COLLATE "C" PRIMARY KEY,
    info text NOT NULL,
    beat_at bigint NOT NULL,
    alive_until bigint NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE windlass.orders (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    node text COLLATE "C" NOT NULL,
    what text NOT NULL,
    slots bigint
);
CREATE INDEX orders_node ON windlass.orders (node, number);

-- Who waits for a notification; everybody else is not notified, because a notification takes a lock of the whole server
-- when it is committed. `until` is by the server's clock.
CREATE UNLOGGED TABLE windlass.waiting (
    handle text COLLATE "C" PRIMARY KEY,
    ends boolean NOT NULL,
    until bigint NOT NULL
) WITH (fillfactor = 50);

-- Stores one task in the caller's transaction. NULL when it is stored, else the id of the task that has its id or its
-- unique key.
CREATE FUNCTION windlass.push_task(
    task_id text, task_name text, task_queue text, task_priority integer,
    after_micros bigint, at_micros bigint, expires_micros bigint, keep_micros bigint,
    unique_key text, unique_micros bigint, task_key text, task_workflow text, flows boolean, stored text
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    now bigint := windlass.micros();
    due bigint := coalesce(at_micros, now + after_micros, 0);
    begins smallint := CASE WHEN due > now THEN 0 ELSE 1 END;
    holder text;
BEGIN
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
    INSERT INTO windlass.live (id, queue, name, priority, state, at, rank, enqueued_at, has_flow, expires, keep, guard, key,
        workflow, body)
    VALUES (task_id, task_queue, task_name, task_priority, begins, CASE begins WHEN 0 THEN due ELSE 0 END,
        CASE begins WHEN 0 THEN due ELSE now END - task_priority * 300000000::bigint, now, flows, expires_micros, keep_micros,
        CASE WHEN unique_micros IS NULL THEN unique_key END, task_key, task_workflow, stored)
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
-- unique key already. `args`: an object of arguments by name, or an array of arguments by position.
CREATE FUNCTION windlass.enqueue(
    name text, args jsonb DEFAULT '{}', queue text DEFAULT 'default', priority integer DEFAULT 5,
    delay interval DEFAULT NULL, run_at timestamptz DEFAULT NULL, expires timestamptz DEFAULT NULL, id text DEFAULT NULL,
    key text DEFAULT NULL, unique_key text DEFAULT NULL, unique_for interval DEFAULT NULL, headers jsonb DEFAULT NULL,
    retries integer DEFAULT NULL, result_ttl interval DEFAULT NULL
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    task_id text := coalesce(enqueue.id, gen_random_uuid()::text);
    word text;
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
    RETURN coalesce(windlass.push_task(task_id, enqueue.name, enqueue.queue, enqueue.priority,
        (extract(epoch FROM enqueue.delay) * 1000000)::bigint, (extract(epoch FROM enqueue.run_at) * 1000000)::bigint,
        (extract(epoch FROM enqueue.expires) * 1000000)::bigint, (extract(epoch FROM enqueue.result_ttl) * 1000000)::bigint,
        enqueue.unique_key, (extract(epoch FROM enqueue.unique_for) * 1000000)::bigint, enqueue.key, NULL, false,
        stored::text), task_id);
END $$;
