-- Completion within a transaction of an application whose driver is not ours. The functions do what the statements of the
-- store do; what is to be decided (is a group complete? what follows?) is decided by their caller, `windlass_sqlx`.

-- A running task has succeeded. False when the claim is not the newest or was settled before: then nothing has changed.
CREATE FUNCTION windlass.complete_task(task_row bigint, task_id text, task_fence bigint, output text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    now bigint := windlass.micros();
    task windlass.live;
    apart boolean;
BEGIN
    DELETE FROM windlass.live l WHERE l.seq = task_row AND l.id = task_id AND l.fence = task_fence AND l.state = 2
    RETURNING l.* INTO task;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- Results with a time of their own are kept apart: they outlive days.
    apart := coalesce(task.keep, 0) > 0;
    IF apart THEN
        INSERT INTO windlass.kept (seq, finished_at, forget_at, fence, enqueued_at, started_at, keep, attempt, crashes, state,
            priority, has_flow, id, queue, name, node, key, workflow, progress, failure, history, memo, result, body)
        VALUES (task.seq, now, now + task.keep, task.fence, task.enqueued_at, task.started_at, task.keep, task.attempt, 0, 4,
            task.priority, task.has_flow, task.id, task.queue, task.name, task.node, task.key, task.workflow, task.progress,
            task.failure, task.history, task.memo, output, task.body);
    ELSE
        INSERT INTO windlass.finished (seq, finished_at, fence, enqueued_at, started_at, keep, attempt, crashes, state,
            priority, has_flow, id, queue, name, node, key, workflow, progress, failure, history, memo, result, body)
        VALUES (task.seq, now, task.fence, task.enqueued_at, task.started_at, task.keep, task.attempt, 0, 4,
            task.priority, task.has_flow, task.id, task.queue, task.name, task.node, task.key, task.workflow, task.progress,
            task.failure, task.history, task.memo, CASE WHEN task.keep IS NULL THEN output END, task.body);
    END IF;
    IF task.guard IS NOT NULL THEN
        DELETE FROM windlass.taken t WHERE t.key = task.guard AND t.id = task.id;
    END IF;
    INSERT INTO windlass.delta (queue, running, succeeded, finished)
    VALUES (task.queue, -1, 1, CASE WHEN apart THEN 0 ELSE 1 END);
    IF EXISTS (SELECT 1 FROM windlass.waiting w WHERE w.ends AND w.until > windlass.micros()) THEN
        PERFORM pg_notify('@channel', 'e ' || task.id);
    END IF;
    IF EXISTS (SELECT 1 FROM windlass.rule WHERE concurrent)
        AND EXISTS (SELECT 1 FROM windlass.waiting w WHERE w.until > windlass.micros())
    THEN
        PERFORM pg_notify('@channel', 'a');
    END IF;
    RETURN true;
END $$;

-- Stores a task that follows another one, however full its queue is. A known one is left alone, unless it died because
-- nothing led to it: then it is revived. Such tasks have no unique key.
CREATE FUNCTION windlass.follow_task(
    task_id text, task_name text, task_queue text, task_priority integer,
    after_micros bigint, at_micros bigint, expires_micros bigint, keep_micros bigint,
    task_key text, task_workflow text, flows boolean, stored text
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    now bigint := windlass.micros();
    due bigint := coalesce(at_micros, now + after_micros, 0);
    begins smallint := CASE WHEN due > now THEN 0 ELSE 1 END;
    stranded_in text;
BEGIN
    DELETE FROM windlass.kept k WHERE k.id = task_id AND k.state = 5 AND k.reason = 6 RETURNING k.queue INTO stranded_in;
    IF FOUND THEN
        INSERT INTO windlass.delta (queue, dead) VALUES (stranded_in, -1);
    END IF;
    INSERT INTO windlass.live (id, queue, name, priority, state, at, rank, enqueued_at, has_flow, expires, keep, key, workflow, body)
    VALUES (task_id, task_queue, task_name, task_priority, begins, CASE begins WHEN 0 THEN due ELSE 0 END,
        CASE begins WHEN 0 THEN due ELSE now END - task_priority * 300000000::bigint, now, flows, expires_micros, keep_micros,
        task_key, task_workflow, stored)
    ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- After the insert: one that waited for a settle of the same task sees what the settle left.
    IF EXISTS (SELECT 1 FROM windlass.finished f WHERE f.id = task_id)
        OR EXISTS (SELECT 1 FROM windlass.kept k WHERE k.id = task_id)
    THEN
        DELETE FROM windlass.live l WHERE l.id = task_id;
        RETURN;
    END IF;
    INSERT INTO windlass.delta (queue, scheduled, ready) VALUES (task_queue, 1 - begins, begins);
    IF EXISTS (SELECT 1 FROM windlass.waiting w WHERE w.until > windlass.micros()) THEN
        PERFORM pg_notify('@channel', CASE begins WHEN 1 THEN 'q ' || task_queue ELSE 'd' END);
    END IF;
END $$;

-- Creates a group unless it is known.
CREATE FUNCTION windlass.add_group(group_id text, members integer, failure_policy text, what_follows text) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO windlass.groups (id, size, policy, after, touched_at)
    VALUES (group_id, members, failure_policy, what_follows, windlass.micros()) ON CONFLICT (id) DO NOTHING
$$;

-- Counts a member that has succeeded at its group and locks that; it counts once, and takes the place of its own failure.
-- Answers the group, or nothing when nothing has changed.
CREATE FUNCTION windlass.arrive(group_id text, member integer, result text) RETURNS SETOF windlass.groups
LANGUAGE plpgsql AS $$
DECLARE
    now bigint := windlass.micros();
    g windlass.groups;
    known boolean;
BEGIN
    SELECT * INTO g FROM windlass.groups x WHERE x.id = group_id FOR UPDATE;
    IF NOT FOUND OR g.completed OR member >= g.size THEN
        RETURN;
    END IF;
    SELECT a.succeeded INTO known FROM windlass.arrival a WHERE a.number = g.number AND a.place = member;
    IF known THEN
        RETURN;
    END IF;
    INSERT INTO windlass.arrival AS a (number, place, succeeded, outcome) VALUES (g.number, member, true, result)
    ON CONFLICT (number, place) DO UPDATE SET succeeded = excluded.succeeded, outcome = excluded.outcome;
    UPDATE windlass.groups x SET
        succeeded = x.succeeded + 1,
        failed = x.failed - CASE WHEN known IS NULL THEN 0 ELSE 1 END,
        -- Its age matters by days.
        touched_at = CASE WHEN x.touched_at < now - 3600000000 THEN now ELSE x.touched_at END
    WHERE x.number = g.number RETURNING x.* INTO g;
    RETURN NEXT g;
END $$;

-- A group is complete: what its members ended with, in the order of their places.
CREATE FUNCTION windlass.complete_group(group_id text) RETURNS TABLE (ok boolean, said text) LANGUAGE plpgsql AS $$
DECLARE
    group_number bigint;
BEGIN
    UPDATE windlass.groups x SET completed = true, touched_at = windlass.micros() WHERE x.id = group_id
    RETURNING x.number INTO group_number;
    RETURN QUERY SELECT a.succeeded, a.outcome FROM windlass.arrival a WHERE a.number = group_number ORDER BY a.place;
    DELETE FROM windlass.arrival a WHERE a.number = group_number;
END $$;

-- How many tasks may wait in a queue that has a length, and how many do; locks that limit, so that pushes into such a queue go
-- one after the other. NULL when it has none.
CREATE FUNCTION windlass.room_in(queue_name text, OUT most bigint, OUT waiting bigint) LANGUAGE plpgsql AS $$
BEGIN
    SELECT r.length INTO most FROM windlass.rule r WHERE r.subject = 'queue:' || queue_name AND r.length IS NOT NULL FOR UPDATE;
    IF FOUND THEN
        waiting := windlass.waiting_in(queue_name);
    END IF;
END $$;
