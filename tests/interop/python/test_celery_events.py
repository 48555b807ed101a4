"""Events as a real receiver hears them, and the state that monitors make of them."""

import pytest
from celery.exceptions import TaskRevokedError

from celery_site import Listener, Site, listening
from machine import PATIENCE, START_PATIENCE, unique, until


def heard(site: Site) -> Listener:
    return site.listener


@pytest.fixture(scope="module")
def observed(controlled: Site):
    """The site with a receiver that has heard a heartbeat, so that nothing after it is missed."""
    with listening(controlled.app) as listener:
        controlled.listener = listener
        listener.wait_for_worker("worker-heartbeat", controlled.shared.hostname)
        yield controlled


def test_a_worker_says_that_it_lives(observed: Site):
    event = heard(observed).wait_for_worker("worker-heartbeat", observed.shared.hostname)
    assert {"freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys", "pid", "clock"} <= set(event)
    assert len(event["loadavg"]) == 3
    worker = heard(observed).state.workers[observed.shared.hostname]
    assert worker.alive
    assert worker.active is not None


def test_heartbeats_come_again_and_their_clock_grows(observed: Site):
    listener, name = heard(observed), observed.shared.hostname

    def beats() -> list[dict]:
        # A RabbitMQ is shared with the workers of other sites.
        with listener.changed:
            return [event for event in listener.events if (event["type"], event["hostname"]) == ("worker-heartbeat", name)]

    until(lambda: len(beats()) >= 3, "three heartbeats")
    clocks = [beat["clock"] for beat in beats()]
    assert clocks == sorted(set(clocks))


def test_a_task_is_received_started_and_succeeds(observed: Site):
    result = observed.send("add", 40, 2)
    listener = heard(observed)
    received = listener.wait_for_task("task-received", result.id)
    started = listener.wait_for_task("task-started", result.id)
    succeeded = listener.wait_for_task("task-succeeded", result.id)
    assert received["name"] == "interop.add"
    assert received["args"] == "(40, 2)"
    assert received["kwargs"] == "{}"
    assert received["retries"] == 0
    assert received["root_id"] == result.id
    assert received["parent_id"] is None
    assert {event["hostname"] for event in (received, started, succeeded)} == {observed.shared.hostname}
    assert succeeded["result"] == "42"
    assert succeeded["runtime"] >= 0
    assert received["clock"] < started["clock"] < succeeded["clock"]
    task = listener.state.tasks[result.id]
    assert (task.state, task.name, task.result, task.worker.hostname) == (
        "SUCCESS",
        "interop.add",
        "42",
        observed.shared.hostname,
    )


def test_arguments_and_results_are_shown_as_python_shows_them(observed: Site):
    result = observed.send("echo", "text", None, True, 1.5, [1], kwargs={"a": "b"})
    event = heard(observed).wait_for_task("task-received", result.id)
    assert event["args"] == "('text', None, True, 1.5, [1])"
    assert event["kwargs"] == "{'a': 'b'}"
    event = heard(observed).wait_for_task("task-succeeded", result.id)
    assert event["result"] == "{'args': ['text', None, True, 1.5, [1]], 'kwargs': {'a': 'b'}}"


def test_a_failure_is_told_with_its_exception(observed: Site):
    result = observed.send("fail", "told")
    event = heard(observed).wait_for_task("task-failed", result.id)
    assert event["exception"] == "ValueError('told')"
    assert isinstance(event["traceback"], str)
    assert heard(observed).state.tasks[result.id].state == "FAILURE"


def test_a_retry_is_told_and_received_again(observed: Site):
    result = observed.send("flaky", "events", 1)
    listener = heard(observed)
    retried = listener.wait_for_task("task-retried", result.id)
    assert "flaky events" in retried["exception"]
    listener.wait_for_task("task-succeeded", result.id)
    types = listener.types_of(result.id)
    assert types.count("task-received") == 2
    assert types.count("task-retried") == 1
    assert types[-1] == "task-succeeded"


def test_an_unknown_task_is_told_as_a_failure(observed: Site):
    result = observed.send("not_known")
    event = heard(observed).wait_for_task("task-failed", result.id)
    assert event["exception"].startswith("NotRegistered(")


def test_a_revoked_task_is_told(observed: Site):
    id = unique("revoked")
    observed.control(observed.shared, "revoke", task_id=id)
    observed.send("add", 1, 2, task_id=id)
    event = heard(observed).wait_for_task("task-revoked", id)
    assert (event["terminated"], event["signum"], event["expired"]) == (False, None, False)
    assert heard(observed).state.tasks[id].state == "REVOKED"


def test_a_terminated_task_is_told_as_such(observed: Site):
    result = observed.send("sleep", 60)
    observed.wait_for_state(result, "STARTED")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    event = heard(observed).wait_for_task("task-revoked", result.id)
    assert event["terminated"] is True


def test_an_expired_task_is_told_as_such(observed: Site):
    result = observed.publish_task("interop.add", 1, 2, expires="2020-01-01T00:00:00+00:00")
    event = heard(observed).wait_for_task("task-revoked", result.id)
    assert event["expired"] is True


def test_children_name_their_parent_and_root(observed: Site):
    result = (observed.sig("add", 1, 2) | observed.sig("chain_double")).apply_async()
    event = heard(observed).wait_for_task("task-received", result.id)
    assert event["parent_id"] == event["root_id"] == result.parent.id


def test_a_worker_that_comes_and_goes_is_told(own_site: Site):
    with listening(own_site.app) as listener:
        worker = own_site.worker()
        listener.wait(
            "worker-online",
            lambda event: event["type"] == "worker-online" and event["hostname"] == worker.hostname,
            START_PATIENCE,
        )
        assert worker.stop() == 0
        listener.wait_for_worker("worker-offline", worker.hostname)
        assert not listener.state.workers[worker.hostname].alive


def test_without_events_only_the_worker_is_heard(own_site: Site):
    with listening(own_site.app) as listener:
        worker = own_site.worker()
        result = own_site.send("add", 1, 2)
        assert result.get(timeout=PATIENCE) == 3
        # A result is stored a moment before its event would be sent.
        until(lambda: own_site.inspect(worker).active() == {worker.hostname: []}, "the task to be over")
        own_site.control(worker, "enable_events")
        later = own_site.send("add", 1, 2)
        listener.wait_for_task("task-succeeded", later.id)
        assert listener.types_of(result.id) == []
