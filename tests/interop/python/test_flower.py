"""Flower as a process: what its HTTP API shows and does."""

import json
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest
from celery.exceptions import TaskRevokedError

import machine
from celery_site import Site
from machine import PATIENCE, START_PATIENCE, Process, free_port, until


class Flower:
    def __init__(self, site: Site) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "celery", "-A", "flower_application", "flower"]
        command += [f"--port={self.port}", "--address=127.0.0.1"]
        environment = {
            "INTEROP_BROKER": site.broker_url,
            "INTEROP_RESULT": site.database.url,
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        self.process = Process("flower", command, environment)

    def ask(self, path: str, body: bytes | None = None, **query) -> dict:
        url = f"http://127.0.0.1:{self.port}/api/{path}"
        if query:
            url += "?" + urllib.parse.urlencode(query)
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=10) as answer:
            return json.loads(answer.read())

    def ask_if_it_knows(self, path: str, **query) -> dict | None:
        """The answer, or nothing while it does not know what is asked for."""
        try:
            return self.ask(path, **query)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None


@pytest.fixture(scope="module")
def flower(controlled: Site):
    flower = Flower(controlled)

    def knows_the_worker() -> bool:
        return controlled.shared.hostname in (flower.ask_if_it_knows("workers", refresh=1) or {})

    until(knows_the_worker, "Flower to know the worker", START_PATIENCE)
    controlled.flower = flower
    yield flower
    flower.process.kill()


def test_the_worker_is_listed_with_what_it_knows(controlled: Site, flower: Flower):
    worker = flower.ask("workers", refresh=1, workername=controlled.shared.hostname)[controlled.shared.hostname]
    assert "interop.add" in worker["registered"]
    assert worker["stats"]["pool"]["max-concurrency"] == 2
    assert [queue["name"] for queue in worker["active_queues"]] == [controlled.queue]
    assert worker["conf"]["task_default_queue"] == controlled.queue
    assert {"active", "reserved", "scheduled", "revoked"} <= set(worker)


def test_the_worker_is_online(controlled: Site, flower: Flower):
    until(lambda: (flower.ask_if_it_knows("workers", status=1) or {}).get(controlled.shared.hostname), "it is online")


def test_a_task_is_listed_with_its_result(controlled: Site, flower: Flower):
    result = controlled.send("add", 40, 2)
    assert result.get(timeout=PATIENCE) == 42

    def finished() -> dict | None:
        task = flower.ask_if_it_knows(f"task/info/{result.id}")
        return task if task and task["state"] == "SUCCESS" else None

    task = until(finished, "Flower to know that the task succeeded")
    assert task["name"] == "interop.add"
    assert task["args"] == "(40, 2)"
    assert task["result"] == "42"
    assert task["worker"] == controlled.shared.hostname
    assert task["runtime"] is not None
    assert result.id in flower.ask("tasks", limit=50)


def test_a_failed_task_is_listed_with_its_error(controlled: Site, flower: Flower):
    result = controlled.send("fail", "for Flower")

    def failed() -> dict | None:
        task = flower.ask_if_it_knows(f"task/info/{result.id}")
        return task if task and task["state"] == "FAILURE" else None

    assert until(failed, "Flower to know that the task failed")["exception"] == "ValueError('for Flower')"


def test_the_result_of_a_task_is_shown(controlled: Site, flower: Flower):
    result = controlled.send("add", 1, 2)
    result.get(timeout=PATIENCE)
    until(lambda: flower.ask_if_it_knows(f"task/info/{result.id}"), "Flower to know the task")
    assert flower.ask(f"task/result/{result.id}")["result"] == 3


def test_a_task_is_revoked(controlled: Site, flower: Flower):
    result = controlled.send("add", 1, 2, countdown=60)
    until(lambda: result.id in str(controlled.inspect(controlled.shared).scheduled()), "the task to be scheduled")
    assert "message" in flower.ask(f"task/revoke/{result.id}", b"")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)


def test_a_running_task_is_terminated(controlled: Site, flower: Flower):
    result = controlled.send("sleep", 60)
    controlled.wait_for_state(result, "STARTED")
    flower.ask(f"task/revoke/{result.id}", b"", terminate="true")
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=PATIENCE)


def test_a_rate_limit_is_set(controlled: Site, flower: Flower):
    name = controlled.shared.hostname
    answer = flower.ask("task/rate-limit/interop.echo", b"", workername=name, ratelimit="100/s")
    assert answer["message"] == "new rate limit set successfully"


def test_time_limits_are_set(controlled: Site, flower: Flower):
    name = controlled.shared.hostname
    answer = flower.ask("task/timeout/interop.echo", b"", workername=name, hard=600, soft=500)
    assert answer["message"] == "time limits set successfully"


def test_the_pool_is_grown_and_shrunk(controlled: Site, flower: Flower):
    name = controlled.shared.hostname
    assert "message" in flower.ask(f"worker/pool/grow/{name}", b"", n=1)
    assert "message" in flower.ask(f"worker/pool/shrink/{name}", b"", n=1)


def test_a_queue_is_added_and_taken_away(controlled: Site, flower: Flower):
    name, queue = controlled.shared.hostname, machine.unique("flower")
    assert queue in flower.ask(f"worker/queue/add-consumer/{name}", b"", queue=queue)["message"]
    assert controlled.call("add", 1, 2, queue=queue) == 3
    assert queue in flower.ask(f"worker/queue/cancel-consumer/{name}", b"", queue=queue)["message"]


def test_a_task_is_sent_by_name(controlled: Site, flower: Flower):
    body = json.dumps({"args": [3, 4], "queue": controlled.queue}).encode()
    sent = flower.ask("task/send-task/interop.add", body)
    assert controlled.app.AsyncResult(sent["task-id"]).get(timeout=PATIENCE) == 7


def test_its_pages_are_served(controlled: Site, flower: Flower):
    for page in ("workers", f"worker/{controlled.shared.hostname}", "tasks", "broker", "metrics"):
        with urllib.request.urlopen(f"http://127.0.0.1:{flower.port}/{page}", timeout=10) as answer:
            assert answer.status == 200
