"""One task, from `.delay()` to its result: arguments, times, options."""

import json
import uuid
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from celery.exceptions import NotRegistered, TaskRevokedError

from celery_site import Site
from machine import PATIENCE

EARLY_TOLERANCE = timedelta(milliseconds=50)


def done_at(result) -> datetime:
    at = result.date_done
    at = datetime.fromisoformat(at) if isinstance(at, str) else at
    return at if at.tzinfo else at.replace(tzinfo=timezone.utc)


def now() -> datetime:
    return datetime.now(timezone.utc)


def test_positional_arguments_reach_the_task(site: Site):
    assert site.call("add", 2, 3) == 5
    assert site.call("add", "a", "b") == "ab"
    assert site.call("add", [1], [2, None]) == [1, 2, None]


def test_keyword_arguments_reach_the_task(site: Site):
    assert site.call("add", kwargs={"x": 40, "y": 2}) == 42
    assert site.call("add", 1, kwargs={"y": 1.5}) == 2.5


def test_any_arguments_come_back_as_they_were(site: Site):
    args = [None, True, -1, 2**53, 1.25, "", [], {}, {"deep": [{"er": [1, [2, [3]]]}]}]
    kwargs = {"flag": False, "none": None, "text": "x"}
    assert site.call("echo", *args, kwargs=kwargs) == {"args": args, "kwargs": kwargs}


def test_text_of_any_language_comes_back_as_it_was(site: Site):
    texts = ["grüße", "日本語", "🚀👩‍🚀", "\u0000\u001f", "\u2028", "it's \"quoted\" \\", "مرحبا"]
    kwargs = {"ключ": "значение"}
    assert site.call("echo", *texts, kwargs=kwargs) == {"args": texts, "kwargs": kwargs}


def test_large_numbers_keep_every_digit(site: Site):
    numbers = [2**63 - 1, -(2**63), 2**64, 10**30]
    assert site.call("echo", *numbers)["args"] == numbers


def test_a_megabyte_goes_in_and_comes_back(site: Site):
    text = "0123456789abcdef" * 65536
    assert site.call("echo", text)["args"] == [text]


def test_values_of_other_types_keep_them(site: Site):
    moment = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    id = uuid.uuid4()
    answer = site.call("echo", moment, id, b"bytes", b"\xff\xfe")
    assert answer["args"] == [moment, id, b"bytes", b"\xff\xfe"]


def test_an_error_is_the_exception_of_its_class(site: Site):
    result = site.send("fail", "it is broken")
    with pytest.raises(ValueError, match="it is broken"):
        result.get(timeout=PATIENCE)
    assert result.state == "FAILURE"
    assert result.result.args == ("it is broken",)


@pytest.mark.parametrize("args, kwargs", [((1,), {}), ((1, 2, 3), {}), ((1,), {"z": 2})])
def test_arguments_that_do_not_fit_are_a_type_error(site: Site, args, kwargs):
    with pytest.raises(TypeError):
        site.call("add", *args, kwargs=kwargs)


def test_an_unknown_task_is_answered_as_not_registered(site: Site):
    result = site.send("no_such_task", 1)
    with pytest.raises(NotRegistered):
        result.get(timeout=PATIENCE)
    assert result.state == "FAILURE"
    assert site.call("add", 1, 1) == 2


def test_a_countdown_delays_the_start(site: Site):
    sent = now()
    result = site.send("add", 1, 2, countdown=1)
    assert result.get(timeout=PATIENCE) == 3
    assert done_at(result) >= sent + timedelta(seconds=1) - EARLY_TOLERANCE


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_a_time_of_any_zone_is_the_same_moment(site: Site, zone: str):
    eta = datetime.now(ZoneInfo(zone)) + timedelta(seconds=1)
    result = site.send("add", 1, 2, eta=eta)
    assert result.get(timeout=PATIENCE) == 3
    assert eta - EARLY_TOLERANCE <= done_at(result) < eta + timedelta(seconds=10)


def test_a_time_without_a_zone_is_utc(site: Site):
    eta = now() + timedelta(seconds=1)
    result = site.publish_task("interop.add", 1, 2, eta=eta.replace(tzinfo=None).isoformat())
    assert result.get(timeout=PATIENCE) == 3
    assert eta - EARLY_TOLERANCE <= done_at(result) < eta + timedelta(seconds=10)


def test_a_time_in_the_past_starts_at_once(site: Site):
    assert site.call("add", 1, 2, eta=now() - timedelta(hours=1)) == 3


def test_a_task_that_has_expired_is_revoked(site: Site):
    # As a message with a past `expires`, because a broker may drop one that says so in its properties.
    expires = (now() - timedelta(seconds=5)).isoformat()
    result = site.publish_task("interop.add", 1, 2, expires=expires)
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=PATIENCE)
    assert result.state == "REVOKED"


def test_a_task_that_expires_while_it_waits_is_revoked(site: Site):
    result = site.publish_task(
        "interop.add",
        1,
        2,
        eta=(now() + timedelta(seconds=1.5)).isoformat(),
        expires=(now() + timedelta(seconds=0.5)).isoformat(),
    )
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=PATIENCE)


def test_a_task_that_has_not_expired_runs(site: Site):
    assert site.call("add", 1, 2, expires=60) == 3


def test_headers_of_the_caller_do_no_harm(site: Site):
    headers = {"tenant": "t-1", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "n": 5}
    assert site.call("add", 1, 2, headers=headers) == 3


def test_a_task_with_an_id_of_its_own_is_answered_under_it(site: Site):
    id = f"order:{uuid.uuid4()}"
    result = site.send("add", 1, 2, task_id=id)
    assert result.id == id
    assert result.get(timeout=PATIENCE) == 3


def test_a_compressed_message_is_read(site: Site):
    assert site.call("echo", "x" * 10_000, compression="zlib")["args"] == ["x" * 10_000]


def test_an_ignored_result_is_not_stored(site: Site):
    result = site.send("add", 1, 2, ignore_result=True)
    # Behind it in the same queue; both have a slot.
    assert site.call("add", 3, 4) == 7
    assert site.app.AsyncResult(result.id).state == "PENDING"
    assert not site.redis.exists(f"celery-task-meta-{result.id}")


def test_an_ignored_failure_is_not_stored(site: Site):
    result = site.send("fail", "nobody wants to know", ignore_result=True)
    assert site.call("add", 3, 4) == 7
    assert not site.redis.exists(f"celery-task-meta-{result.id}")


def test_a_running_task_is_started(site: Site):
    result = site.send("sleep", 1)
    site.wait_for_state(result, "STARTED")
    assert result.info["hostname"] == site.shared.hostname
    assert result.get(timeout=PATIENCE) == 1


def test_a_number_comes_back_as_the_number_it_was(site: Site):
    assert repr(site.call("sleep", 0.0)) == "0.0"
    assert repr(site.call("sleep", 0)) == "0"


def test_results_expire_after_an_hour(site: Site):
    result = site.send("add", 1, 2)
    result.get(timeout=PATIENCE)
    assert 3500 < site.redis.ttl(f"celery-task-meta-{result.id}") <= 3600


def test_a_forgotten_result_is_gone(site: Site):
    result = site.send("add", 1, 2)
    result.get(timeout=PATIENCE)
    result.forget()
    assert site.app.AsyncResult(result.id).state == "PENDING"


def test_a_message_of_protocol_one_runs(site: Site):
    id = str(uuid.uuid4())
    body = {"task": "interop.add", "id": id, "args": [20, 22], "kwargs": {}, "retries": 0, "eta": None, "utc": True}
    site.publish(json.dumps(body), {})
    assert site.app.AsyncResult(id).get(timeout=PATIENCE) == 42


def test_the_same_id_sent_twice_runs_twice(site: Site):
    id = str(uuid.uuid4())
    assert site.send("add", 1, 1, task_id=id).get(timeout=PATIENCE) == 2
    site.send("fail", "the first result stays", task_id=id)
    assert site.call("add", 3, 4) == 7
    assert site.app.AsyncResult(id).get(timeout=PATIENCE) == 2
