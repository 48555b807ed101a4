"""How a task may end otherwise: retried, revoked, terminated, over its limits."""

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery.exceptions import TaskRevokedError

from celery_site import Site
from machine import PATIENCE, until


def test_a_task_that_fails_twice_succeeds_with_its_third_attempt(site: Site):
    result = site.send("flaky", "a", 2)
    assert result.get(timeout=PATIENCE) == {"key": "a", "attempts": 3}


def test_a_task_without_failures_has_one_attempt(site: Site):
    assert site.call("flaky", "b", 0) == {"key": "b", "attempts": 1}


def test_a_task_that_waits_for_its_retry_says_so(site: Site):
    result = site.send("flaky", "c", 1)
    site.wait_for_state(result, "RETRY")
    assert isinstance(result.info, RuntimeError)
    assert result.info.args == ("flaky c",)
    assert result.get(timeout=PATIENCE) == {"key": "c", "attempts": 2}


def test_a_task_that_always_fails_gives_up_with_its_last_error(site: Site):
    result = site.send("flaky", "d", 100)
    with pytest.raises(RuntimeError, match="flaky d"):
        result.get(timeout=PATIENCE)
    assert result.state == "FAILURE"


def test_the_retries_that_a_message_brings_are_counted(site: Site):
    result = site.publish_task("interop.flaky", "e", 2, retries=1)
    assert result.get(timeout=PATIENCE) == {"key": "e", "attempts": 3}


def test_a_message_that_was_retried_often_enough_runs_without_failing(site: Site):
    result = site.publish_task("interop.flaky", "f", 3, retries=3)
    assert result.get(timeout=PATIENCE) == {"key": "f", "attempts": 4}


def test_a_message_whose_retries_are_used_up_is_not_retried(site: Site):
    result = site.publish_task("interop.flaky", "g", 100, retries=4)
    with pytest.raises(RuntimeError, match="flaky g"):
        result.get(timeout=PATIENCE)


def test_what_follows_a_task_waits_for_its_last_attempt(site: Site):
    chain = site.sig("flaky", "h", 1) | site.sig("echo", "after")
    result = chain.apply_async()
    assert result.get(timeout=PATIENCE)["args"] == [{"key": "h", "attempts": 2}, "after"]


def test_a_task_that_is_revoked_before_it_starts_never_runs(site: Site):
    result = site.send("add", 1, 2, countdown=2)
    scheduled = lambda: result.id in str(site.inspect(site.shared).scheduled())
    until(scheduled, "the task to be scheduled")
    result.revoke()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    assert result.state == "REVOKED"


def test_a_task_that_is_revoked_before_it_is_sent_never_runs(site: Site):
    import uuid

    id = str(uuid.uuid4())
    site.control(site.shared, "revoke", task_id=id)
    result = site.send("add", 1, 2, task_id=id)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)


def test_a_running_task_goes_on_when_it_is_revoked_without_termination(site: Site):
    result = site.send("sleep", 1)
    site.wait_for_state(result, "STARTED")
    result.revoke()
    assert result.get(timeout=PATIENCE) == 1


def test_a_running_task_is_terminated(site: Site):
    result = site.send("sleep", 60)
    site.wait_for_state(result, "STARTED")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=PATIENCE)
    until(lambda: site.inspect(site.shared).active() == {site.shared.hostname: []}, "the slot to be free")


def test_a_task_past_its_hard_limit_is_ended(site: Site):
    result = site.send("sleep", 60, time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE)
    assert result.state == "FAILURE"
    assert result.result.args == (1,)


def test_a_task_past_its_soft_limit_is_told(site: Site):
    result = site.send("sleep", 60, soft_time_limit=1)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=PATIENCE)
    assert result.state == "FAILURE"


def test_a_task_within_its_limits_succeeds(site: Site):
    assert site.call("sleep", 0.1, time_limit=30, soft_time_limit=20) == 0.1


def test_a_worker_runs_tasks_after_it_ended_one(site: Site):
    assert site.call("add", 1, 2) == 3
    assert site.shared.process.is_alive()
