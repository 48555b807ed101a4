"""The other direction: our client in Rust enqueues for a real Celery worker and reads its results."""

import subprocess
import time
from datetime import datetime, timedelta, timezone

import pytest

import machine
from celery_site import Site, priority_queue
from machine import PATIENCE
from rust_client import Client, chain, chord, group, task


def client_of(site: Site, **changes) -> Client:
    return Client(
        "celery",
        {
            "INTEROP_BROKER": site.broker_url,
            "INTEROP_RESULT": site.database.url,
            "INTEROP_QUEUES": site.queue,
            **changes,
        },
    )


@pytest.fixture(scope="module", params=["redis", "amqp"])
def python_site(request):
    """A site whose worker is always the one from Python."""
    site = Site(request.param)
    site.shared = site.worker(command=machine.reference_command("celery"), INTEROP_EVENTS=1)
    yield site
    site.close()


@pytest.fixture
def client(python_site: Site) -> Client:
    return client_of(python_site)


def test_a_task_runs_and_its_result_is_read(client: Client):
    assert client.result_of(task("add", 2, 3)) == 5
    assert client.result_of(task("add", kwargs={"x": "a", "y": "b"})) == "ab"


def test_any_arguments_come_back_as_they_were(client: Client):
    args = [None, True, -1, 2**53, 1.25, "", [], {}, "grüße 日本語 🚀", {"deep": [{"er": [1]}]}]
    assert client.result_of(task("echo", *args, kwargs={"ключ": 1})) == {"args": args, "kwargs": {"ключ": 1}}


def test_a_megabyte_goes_in_and_comes_back(client: Client):
    text = "0123456789abcdef" * 65536
    assert client.result_of(task("echo", text))["args"] == [text]


def test_an_error_is_told_with_its_class(client: Client):
    sent = client.enqueue(task("fail", "it is broken"))
    assert client.wait(sent["id"]) == {
        "state": "FAILURE",
        "result": None,
        "error": {"type": "ValueError", "message": "it is broken"},
    }


def test_wrong_arguments_are_a_type_error(client: Client):
    answer = client.wait(client.enqueue(task("add", 1))["id"])
    assert (answer["state"], answer["error"]["type"]) == ("FAILURE", "TypeError")


def test_an_unknown_task_is_told(client: Client):
    answer = client.wait(client.enqueue(task("no_such_task"))["id"])
    assert (answer["state"], answer["error"]["type"]) == ("FAILURE", "NotRegistered")


def test_a_retried_task_is_awaited_to_its_end(client: Client):
    assert client.result_of(task("flaky", "rust", 1)) == {"key": "rust", "attempts": 2}


def test_an_id_of_the_callers_own_is_kept(client: Client, python_site: Site):
    id = machine.unique("order")
    assert client.enqueue(task("add", 1, 2, task_id=id)) == {"id": id}
    assert python_site.app.AsyncResult(id).get(timeout=PATIENCE) == 3


def test_a_chain_is_answered_by_its_last_step(client: Client):
    assert client.result_of(chain(task("add", 1, 2), task("chain_double"), task("add", 10))) == 16
    assert client.result_of(chain(task("add", 1, 2), task("add", 5, 5, immutable=True))) == 10


def test_a_chain_ends_with_the_error_of_its_step(client: Client):
    answer = client.wait(client.enqueue(chain(task("fail", "in a chain"), task("chain_double")))["id"])
    assert answer["error"] == {"type": "ValueError", "message": "in a chain"}


def test_a_group_is_answered_by_its_members(client: Client):
    sent = client.enqueue(group(task("add", 1, 1), task("add", 2, 2), task("add", 3, 3)))
    assert [client.wait(child)["result"] for child in sent["children"]] == [2, 4, 6]


def test_a_chord_is_answered_by_its_body(client: Client):
    assert client.result_of(chord([task("add", n, n) for n in range(5)], task("sum_list"))) == 20
    assert client.result_of(chord([task("add", 2, 2)], task("echo", "more")))["args"] == [[4], "more"]


def test_a_chord_with_a_failed_part_is_a_chord_error(client: Client):
    sent = client.enqueue(chord([task("add", 1, 1), task("fail", "a part")], task("sum_list")))
    answer = client.wait(sent["id"])
    assert answer["error"]["type"] == "ChordError"
    assert "ValueError('a part')" in answer["error"]["message"]


def test_workflows_hold_each_other(client: Client):
    in_chain = chain(task("add", 1, 1), group(task("add", 10), task("add", 20)), task("sum_list"), task("chain_double"))
    assert client.result_of(in_chain) == 68
    chord_in_chain = chain(task("add", 5, 5), chord([task("add", 1), task("add", 2)], task("sum_list")), task("add", 100))
    assert client.result_of(chord_in_chain) == 123
    parts = [chain(task("add", 1, 1), task("chain_double")), task("add", 5, 5)]
    assert client.result_of(chord(parts, task("sum_list"))) == 14
    chords = [chord([task("add", n, n), task("add", n, n)], task("sum_list")) for n in (1, 2)]
    assert client.result_of(chord(chords, task("sum_list"))) == 12


def test_a_callback_runs_with_the_result(client: Client):
    id = machine.unique("callback")
    assert client.result_of(task("add", 2, 3, link=task("echo", "linked", task_id=id))) == 5
    assert client.wait(id)["result"] == {"args": [5, "linked"], "kwargs": {}}


def test_an_error_callback_runs_after_a_failure(client: Client):
    id = machine.unique("errback")
    # Celery calls an errback of several parameters inside of its worker; one of another name gets the id of the task.
    sent = client.enqueue(task("fail", "call back", link_error=task("elsewhere", task_id=id)))
    assert client.wait(sent["id"])["state"] == "FAILURE"
    assert client.wait(id)["error"]["type"] == "NotRegistered"


def test_a_countdown_delays_the_start(client: Client):
    before = time.time()
    assert client.result_of(task("add", 1, 2, countdown=1)) == 3
    assert time.time() - before >= 1


def test_a_time_of_any_zone_is_the_same_moment(client: Client):
    eta = datetime.now(timezone(timedelta(hours=5, minutes=30))) + timedelta(seconds=1)
    assert client.result_of(task("add", 1, 2, eta=eta.isoformat())) == 3
    assert datetime.now(timezone.utc) >= eta


def test_a_task_that_expires_while_it_waits_is_revoked(client: Client):
    eta = datetime.now(timezone.utc) + timedelta(seconds=2)
    expires = datetime.now(timezone.utc) + timedelta(seconds=1)
    # The time to live of its message would end it silently while it is in a queue; the worker takes it at once.
    answer = client.wait(client.enqueue(task("add", 1, 2, eta=eta.isoformat(), expires=expires.isoformat()))["id"])
    assert answer["state"] == "REVOKED"
    assert answer["error"] == {"type": "TaskRevokedError", "message": "expired"}


def test_limits_are_sent(client: Client):
    answer = client.wait(client.enqueue(task("sleep", 60, time_limit=1))["id"])
    assert answer["error"]["type"] == "TimeLimitExceeded"
    answer = client.wait(client.enqueue(task("sleep", 60, soft_time_limit=1))["id"])
    assert answer["error"]["type"] == "SoftTimeLimitExceeded"


def test_an_ignored_result_is_not_stored(client: Client, python_site: Site):
    sent = client.enqueue(task("add", 1, 2, ignore_result=True))
    assert client.result_of(task("add", 1, 2)) == 3
    assert not python_site.redis.exists(f"celery-task-meta-{sent['id']}")


def test_headers_of_the_caller_do_no_harm(client: Client):
    assert client.result_of(task("add", 1, 2, headers={"tenant": "t-1", "n": 5})) == 3


def test_another_queue_is_made_and_used(client: Client, python_site: Site):
    queue = machine.unique("other")
    sent = client.enqueue(task("add", 1, 2, queue=queue))
    python_site.control(python_site.shared, "add_consumer", queue=queue)
    assert client.wait(sent["id"])["result"] == 3
    python_site.control(python_site.shared, "cancel_consumer", queue=queue)


@pytest.mark.parametrize("broker", ["redis", "amqp"])
def test_a_more_urgent_task_is_served_first(broker: str):
    site = Site(broker)
    try:
        if broker == "amqp":
            site.app.conf.task_queues = [priority_queue(site.queue, 9)]
        client = client_of(site, INTEROP_MAX_PRIORITY=9)
        first, middle, last = (0, 6, 9) if broker == "redis" else (9, 5, 0)
        # Before there is a worker: so the queue decides.
        sent = [client.enqueue(task("add", word, "", priority=priority))["id"]
                for word, priority in (("last", last), ("middle", middle), ("first", first))]
        site.worker(
            command=machine.reference_command("celery"),
            INTEROP_CONCURRENCY=1,
            INTEROP_PREFETCH=1,
            INTEROP_MAX_PRIORITY=9,
        )
        results = [site.app.AsyncResult(id) for id in sent]
        done = [(result.get(timeout=PATIENCE), result.date_done) for result in results]
        assert [word for word, _ in sorted(done, key=lambda one: one[1])] == ["first", "middle", "last"]
    finally:
        site.close()


def test_replies_cannot_be_awaited_by_another_process(python_site: Site):
    finished = client_of(python_site, INTEROP_RESULT="rpc://").run("await", "some-id")
    assert finished.returncode == 1
    assert "no other process can await them" in finished.stderr


@pytest.mark.parametrize("call", ["", "[]", "{}", '{"task": 5}', '{"task": "a", "args": {}}', '{"kind": "chain", "tasks": []}'])
def test_a_call_that_makes_no_sense_is_refused(python_site: Site, call: str):
    client = client_of(python_site)
    finished = subprocess.run(
        [*client.command, "enqueue"], input=call, env=client.environment, capture_output=True, text=True, timeout=30
    )
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: ")
    assert finished.stdout == ""


def test_an_environment_that_makes_no_sense_is_explained_at_once(python_site: Site):
    finished = client_of(python_site, INTEROP_BROKER="", INTEROP_RESULT="http://x", INTEROP_EVENTS="perhaps").run("await", "x")
    assert finished.returncode == 1
    for name in ("INTEROP_BROKER", "INTEROP_RESULT", "INTEROP_EVENTS"):
        assert name in finished.stderr
