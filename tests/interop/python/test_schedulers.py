"""Our schedulers for workers from Python: `windlass celery beat` and `windlass taskiq scheduler`."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from taskiq import ScheduledTask
from taskiq_redis import ListRedisScheduleSource

import celery_site
import machine
import taskiq_site
from celery_site import Listener, listening
from machine import PATIENCE, Process, unique, until


def windlass(store: str, *arguments: str) -> str:
    finished = subprocess.run(
        [machine.named("INTEROP_WINDLASS"), *arguments, "--store", store], capture_output=True, text=True, timeout=PATIENCE
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def schedule(store: str, id: str, queue: str, *args: Any) -> None:
    """A slot every second."""
    what = ["interop.echo", "--unregistered", "--queue", queue, "--args", json.dumps(args)]
    windlass(store, "schedule", "add", id, *what, "--every", "1s")


def tasks(store: str, queue: str) -> list[dict[str, Any]]:
    return json.loads(windlass(store, "task", "ls", "-q", f"queue:{queue}", "--json"))["tasks"]


@contextmanager
def scheduler(store: str, *arguments: str, **environment: str) -> Iterator[Process]:
    process = Process("scheduler", [machine.named("INTEROP_WINDLASS"), *arguments], {"WINDLASS_STORE": store, **environment})
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture(params=["redis", "amqp"])
def celery(request):
    site = celery_site.Site(request.param)
    site.worker(command=machine.reference_command("celery"), INTEROP_EVENTS=1)
    yield site
    site.close()


def test_two_beats_send_each_slot_once_to_workers_of_celery(celery: celery_site.Site):
    store, id = celery.database.url, unique("tick")
    schedule(store, id, celery.queue, "tick", 1)
    line = ["celery", "-A", "shop", "beat", "-b", celery.broker_url, "-Q", celery.queue]

    def received(events: Listener) -> list[str]:
        uuids = [event["uuid"] for event in events.events if event["type"] == "task-received"]
        return [uuid for uuid in uuids if uuid.startswith(f"{id}@")]

    first, second = (scheduler(store, *line, "-n", f"beat{number}@%h") for number in range(2))
    with listening(celery.app) as events, first as one, second as two:
        events.wait("the third slot", lambda _: len(received(events)) >= 3)
        assert (one.stop(), two.stop()) == (0, 0)
    sent = received(events)
    assert len(sent) == len(set(sent)), "a slot was sent twice"
    for task in sent:
        assert celery.app.AsyncResult(task).get(timeout=PATIENCE) == {"args": ["tick", 1], "kwargs": {}}
    # What was due at the very end may still wait here.
    states = {task["id"]: task["state"] for task in tasks(store, celery.queue)}
    assert {states[task] for task in sent} == {"succeeded"}


@pytest.fixture(params=["list", "stream", "aiopika"])
def taskiq(request):
    site = taskiq_site.Site(request.param, "pickle")
    site.worker(command=machine.reference_command("taskiq"))
    yield site
    site.close()


def taskiq_scheduler(site: taskiq_site.Site):
    url = site.broker_url if site.kind == "aiopika" else f"{site.broker_url}?kind={site.kind}"
    # What has no Redis of its own is told where schedules are.
    theirs = f"?schedules={site.database.url}" if site.kind == "aiopika" else ""
    line = ["taskiq", "scheduler", "shop.scheduler:scheduler", "-Q", site.queue]
    return scheduler(site.database.url, *line, TASKIQ_BROKER_URL=url + theirs)


def test_schedules_of_ours_and_of_taskiqs_are_run_by_its_workers(taskiq: taskiq_site.Site):
    id, store = unique("slot"), taskiq.database.url
    schedule(store, id, taskiq.queue, "ours")
    scheduled = ScheduledTask(
        task_name="interop.add",
        labels={"queue_name": taskiq.queue},
        args=[40],
        kwargs={"y": 2},
        task_id=unique("theirs"),
        time=datetime.now(timezone.utc) + timedelta(seconds=1),
    )

    async def add() -> None:
        source = ListRedisScheduleSource(store)
        await source.startup()
        await source.add_schedule(scheduled)
        await source.shutdown()

    taskiq.run(add())

    def output(task: str) -> Any:
        results = taskiq.broker.result_backend
        until(lambda: taskiq.run(results.is_result_ready(task)), f"{task} to be run")
        return taskiq.run(results.get_result(task)).return_value

    def sent() -> str | None:
        return next((task["id"] for task in tasks(store, taskiq.queue) if task["state"] == "succeeded"), None)

    with taskiq_scheduler(taskiq) as process:
        assert output(scheduled.task_id) == 42
        assert output(until(sent, "our schedule to be sent")) == {"args": ["ours"], "kwargs": {}}
        assert process.stop() == 0
