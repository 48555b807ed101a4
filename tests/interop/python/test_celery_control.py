"""Remote control: `celery inspect` and `celery control`, each answered by the worker within a second."""

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from celery_site import Site
from machine import PATIENCE, unique, until

TASKS = {
    "interop.add",
    "interop.chain_double",
    "interop.echo",
    "interop.fail",
    "interop.flaky",
    "interop.sleep",
    "interop.sum_list",
}


def answer(site: Site, what: str, *args, **kwargs):
    replies = getattr(site.inspect(site.shared), what)(*args, **kwargs)
    assert replies, f"{what} was not answered"
    return replies[site.shared.hostname]


def fill_slots(site: Site, seconds: float = 60):
    running = [site.send("sleep", seconds) for _ in range(2)]
    for result in running:
        site.wait_for_state(result, "STARTED")
    return running


def end(site: Site, results) -> None:
    for result in results:
        result.revoke(terminate=True)
    for result in results:
        with pytest.raises(TaskRevokedError):
            result.get(timeout=PATIENCE)


def test_ping_is_answered(controlled: Site):
    assert answer(controlled, "ping") == {"ok": "pong"}


def test_ping_is_answered_while_every_slot_is_busy(controlled: Site):
    running = fill_slots(controlled)
    assert answer(controlled, "ping") == {"ok": "pong"}
    end(controlled, running)


def test_a_node_that_is_not_asked_is_silent(controlled: Site):
    control = controlled.app.control
    assert control.broadcast("ping", destination=["nobody@nowhere"], reply=True, timeout=0.5) == []


def test_a_pattern_reaches_the_nodes_that_fit(controlled: Site):
    control = controlled.app.control
    name = controlled.shared.hostname
    fitting = control.broadcast("ping", pattern=f"{name[:12]}*", matcher="glob", reply=True, timeout=1, limit=1)
    assert {name: {"ok": "pong"}} in fitting
    assert control.broadcast("ping", pattern="nobody*", matcher="glob", reply=True, timeout=0.5) == []


def test_an_unknown_method_is_an_error(controlled: Site):
    assert "error" in controlled.control(controlled.shared, "no_such_method")


def test_active_tasks_are_described(controlled: Site):
    running = fill_slots(controlled)
    tasks = {task["id"]: task for task in answer(controlled, "active")}
    assert set(tasks) == {result.id for result in running}
    task = tasks[running[0].id]
    assert task["name"] == task["type"] == "interop.sleep"
    assert task["args"] == [60]
    assert task["kwargs"] == {}
    assert task["hostname"] == controlled.shared.hostname
    assert isinstance(task["time_start"], float)
    assert isinstance(task["worker_pid"], int)
    assert task["delivery_info"]["routing_key"] == controlled.queue
    safe = {task["id"]: task for task in answer(controlled, "active", safe=True)}
    assert safe[running[0].id]["args"] == "(60,)"
    assert safe[running[0].id]["kwargs"] == "{}"
    end(controlled, running)
    until(lambda: answer(controlled, "active") == [], "no task to be active")


@pytest.mark.parametrize("state", ["active", "reserved", "scheduled"])
def test_a_task_is_found_by_its_id_while_it_is(controlled: Site, state: str):
    running = fill_slots(controlled) if state != "scheduled" else []
    if state == "active":
        task = running[0]
    else:
        task = controlled.send("add", 1, 2, countdown=60 if state == "scheduled" else None)
    found = until(lambda: answer(controlled, "query_task", [task.id, "no-such-task"]), "the task to be known")
    known_as = "ready" if state == "scheduled" else state
    assert found[task.id][1]["id"] == task.id
    assert found[task.id][0] in {state, known_as, "reserved"}
    assert list(found) == [task.id]
    task.revoke()
    end(controlled, running if state == "active" else [*running, task])


def test_what_waits_for_a_slot_is_reserved(controlled: Site):
    running = fill_slots(controlled)
    waiting = controlled.send("add", 1, 2)
    until(lambda: waiting.id in [task["id"] for task in answer(controlled, "reserved")], "the task to be reserved")
    end(controlled, running)
    assert waiting.get(timeout=PATIENCE) == 3


def test_what_waits_for_its_time_is_scheduled(controlled: Site):
    result = controlled.send("add", 1, 2, countdown=120)
    entry = until(
        lambda: [one for one in answer(controlled, "scheduled") if one["request"]["id"] == result.id],
        "the task to be scheduled",
    )[0]
    assert entry["request"]["name"] == "interop.add"
    assert entry["priority"] == 6
    assert entry["eta"]
    end(controlled, [result])


def test_revoked_tasks_are_listed(controlled: Site):
    id = unique("revoked")
    assert "ok" in controlled.control(controlled.shared, "revoke", task_id=id)
    assert id in answer(controlled, "revoked")


def test_several_tasks_are_revoked_at_once(controlled: Site):
    ids = [unique("revoked"), unique("revoked")]
    assert "ok" in controlled.control(controlled.shared, "revoke", task_id=ids)
    assert set(ids) <= set(answer(controlled, "revoked"))
    for id in ids:
        with pytest.raises(TaskRevokedError):
            controlled.send("add", 1, 2, task_id=id).get(timeout=PATIENCE)


def test_terminating_what_nobody_runs_says_so(controlled: Site):
    reply = controlled.control(controlled.shared, "revoke", task_id=unique("nothing"), terminate=True, signal="SIGTERM")
    assert reply == {"ok": "terminate: tasks unknown"}


def test_registered_tasks_are_listed(controlled: Site):
    assert TASKS <= set(answer(controlled, "registered"))
    assert not [name for name in answer(controlled, "registered") if name.startswith("celery.")]


def test_stats_count_tasks_and_describe_the_pool(controlled: Site):
    before = answer(controlled, "stats")["total"].get("interop.add", 0)
    assert controlled.call("add", 1, 2) == 3
    stats = answer(controlled, "stats")
    assert stats["total"]["interop.add"] == before + 1
    assert stats["pool"]["max-concurrency"] == 2
    assert isinstance(stats["pid"], int)
    assert isinstance(stats["clock"], str)
    assert isinstance(stats["uptime"], int)
    assert stats["prefetch_count"] >= 0
    assert stats["broker"]["transport"] in {"redis", "amqp"}
    assert "alternates" in stats["broker"]
    assert {"utime", "stime", "maxrss"} <= set(stats["rusage"])


def test_no_password_is_in_an_answer(controlled: Site):
    said = repr(answer(controlled, "stats")) + repr(answer(controlled, "conf"))
    assert "windlass:windlass" not in said


def test_queues_are_described(controlled: Site):
    queue = next(one for one in answer(controlled, "active_queues") if one["name"] == controlled.queue)
    assert queue["routing_key"] == controlled.queue
    assert queue["exchange"]["name"] == controlled.queue
    assert queue["exchange"]["type"] == "direct"
    assert queue["durable"] is True


def test_the_configuration_is_shown(controlled: Site):
    conf = answer(controlled, "conf")
    assert conf["task_default_queue"] == controlled.queue


def test_the_clock_goes_forward(controlled: Site):
    first, second = answer(controlled, "clock")["clock"], answer(controlled, "clock")["clock"]
    assert second > first


def test_a_report_is_given(controlled: Site):
    assert "ok" in answer(controlled, "report")


def test_hello_tells_what_was_revoked(controlled: Site):
    id = unique("revoked")
    controlled.control(controlled.shared, "revoke", task_id=id)
    reply = controlled.inspect(controlled.shared).hello("other@node", {})
    assert id in reply[controlled.shared.hostname]["revoked"]


def test_a_rate_limit_slows_a_task_down(controlled: Site):
    assert controlled.control(controlled.shared, "rate_limit", task_name="interop.sum_list", rate_limit="120/m") == {
        "ok": "new rate limit set successfully"
    }
    results = [controlled.send("sum_list", [number]) for number in range(4)]
    assert [result.get(timeout=PATIENCE) for result in results] == [0, 1, 2, 3]
    done = sorted(result.date_done for result in results)
    assert (done[-1] - done[0]).total_seconds() > 1.0
    reply = controlled.control(controlled.shared, "rate_limit", task_name="interop.sum_list", rate_limit=0)
    assert reply == {"ok": "rate limit disabled successfully"}


def test_a_rate_limit_is_refused_when_it_makes_no_sense(controlled: Site):
    reply = controlled.control(controlled.shared, "rate_limit", task_name="interop.add", rate_limit="often")
    assert reply["error"].startswith("Invalid rate limit string")
    reply = controlled.control(controlled.shared, "rate_limit", task_name="interop.none", rate_limit="1/s")
    assert reply == {"error": "unknown task"}


def test_time_limits_are_taken(controlled: Site):
    reply = controlled.control(controlled.shared, "time_limit", task_name="interop.sleep", hard=50, soft=40)
    assert reply == {"ok": "time limits set successfully"}
    reply = controlled.control(controlled.shared, "time_limit", task_name="interop.none", hard=50, soft=40)
    assert reply == {"error": "unknown task"}


@pytest.mark.only_ours("it answers that the limit was set and changes nothing")
def test_time_limits_end_a_task(controlled: Site):
    controlled.control(controlled.shared, "time_limit", task_name="interop.sleep", hard=1)
    with pytest.raises(TimeLimitExceeded):
        controlled.call("sleep", 60)
    controlled.control(controlled.shared, "time_limit", task_name="interop.sleep", hard=600)


def test_a_queue_is_added_and_taken_away(controlled: Site):
    queue = unique("added")
    assert controlled.control(controlled.shared, "add_consumer", queue=queue) == {"ok": f"add consumer {queue}"}
    assert controlled.call("add", 1, 2, queue=queue) == 3
    assert queue in [one["name"] for one in answer(controlled, "active_queues")]
    reply = controlled.control(controlled.shared, "cancel_consumer", queue=queue)
    assert reply == {"ok": f"no longer consuming from {queue}"}
    until(lambda: queue not in [one["name"] for one in answer(controlled, "active_queues")], "the queue to be gone")
    kept = controlled.send("add", 3, 4, queue=queue)
    assert controlled.call("add", 1, 1) == 2
    assert kept.state == "PENDING"
    controlled.control(controlled.shared, "add_consumer", queue=queue)
    assert kept.get(timeout=PATIENCE) == 7
    controlled.control(controlled.shared, "cancel_consumer", queue=queue)


def test_the_pool_grows_and_shrinks(controlled: Site):
    assert controlled.control(controlled.shared, "pool_grow", n=1) == {"ok": "pool will grow"}
    until(lambda: answer(controlled, "stats")["pool"]["max-concurrency"] == 3, "the pool to be larger")
    running = [controlled.send("sleep", 60) for _ in range(3)]
    until(lambda: len(answer(controlled, "active")) == 3, "three tasks to run in a pool of three")
    end(controlled, running)
    # Celery refuses while the processes that it ended are being replaced.
    until(lambda: controlled.control(controlled.shared, "pool_shrink", n=1) == {"ok": "pool will shrink"}, "the pool")
    until(lambda: answer(controlled, "stats")["pool"]["max-concurrency"] == 2, "the pool to be smaller")
    running = [controlled.send("sleep", 60) for _ in range(3)]
    until(lambda: len(answer(controlled, "active")) == 2, "two tasks to run in a pool of two")
    until(lambda: len(answer(controlled, "reserved")) == 1, "the third task to wait")
    end(controlled, running)


def test_autoscaling_that_is_off_is_refused(controlled: Site):
    assert "error" in controlled.control(controlled.shared, "autoscale", max=5, min=1)
    assert "error" in controlled.control(controlled.shared, "pool_restart", modules=None, reload=False)


def test_events_are_on_already(controlled: Site):
    reply = controlled.control(controlled.shared, "enable_events")
    assert reply == {"ok": "task events already enabled"}


def test_a_worker_without_events_turns_them_on(own_site: Site):
    worker = own_site.worker()
    assert own_site.control(worker, "enable_events") == {"ok": "task events enabled"}
    assert own_site.control(worker, "enable_events") == {"ok": "task events already enabled"}
    assert own_site.control(worker, "disable_events") == {"ok": "task events disabled"}
    assert own_site.control(worker, "disable_events") == {"ok": "task events already disabled"}


def test_a_worker_shuts_down_when_it_is_told(own_site: Site):
    worker = own_site.worker()
    running = own_site.send("sleep", 1)
    own_site.wait_for_state(running, "STARTED")
    own_site.app.control.shutdown(destination=[worker.hostname])
    assert worker.process.wait() == 0
    assert running.get(timeout=PATIENCE) == 1


def test_a_message_of_control_that_makes_no_sense_is_survived(controlled: Site):
    for method, arguments in [("revoke", {}), ("rate_limit", {"task_name": 5}), ("query_task", {"ids": {"a": 1}})]:
        controlled.app.control.broadcast(
            method, arguments=arguments, destination=[controlled.shared.hostname], reply=True, timeout=0.3, limit=1
        )
    assert answer(controlled, "ping") == {"ok": "pong"}
