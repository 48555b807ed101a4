"""A broker of TaskIQ, a Redis for results, and workers on them: what a test of TaskIQ stands on.

Clients are the real TaskIQ: a broker that has registered no task and calls by name.
"""

import asyncio
import json
import uuid
from collections.abc import Coroutine
from typing import Any

import aio_pika
from taskiq import AsyncTaskiqTask
from taskiq.kicker import AsyncKicker
from taskiq.result import TaskiqResult
from taskiq.serializers import JSONSerializer, PickleSerializer

import machine
import reference_worker
from machine import PATIENCE, START_PATIENCE, Process, unique

CHECK_SECONDS = 0.02


class Site:
    """One kind of broker with one serializer for results."""

    def __init__(self, kind: str, serializer: str) -> None:
        self.kind = kind
        self.serializer = serializer
        self.database = machine.DATABASES.take()
        self.broker_url = machine.rabbitmq_url() if kind == "aiopika" else self.database.url
        self.queue = unique("taskiq")
        self.workers: list["Worker"] = []
        self.runner = asyncio.Runner()
        self.broker = self.client()
        self.run(self.broker.startup())

    @property
    def redis(self):
        return self.database.client

    def environment(self, **changes: Any) -> dict[str, str]:
        return machine.text_environment(
            {
                "INTEROP_BROKER": self.broker_url,
                "INTEROP_RESULT": self.database.url,
                "INTEROP_TASKIQ_KIND": self.kind,
                "INTEROP_QUEUE": self.queue,
                "INTEROP_SERIALIZER": self.serializer,
                "INTEROP_CONCURRENCY": 4,
                "INTEROP_HOSTNAME": unique("taskiq") + "@test",
                **changes,
            }
        )

    def client(self):
        return reference_worker.taskiq_broker(self.environment())

    def data_serializer(self):
        return JSONSerializer() if self.serializer == "json" else PickleSerializer()

    def run(self, work: Coroutine) -> Any:
        return self.runner.run(work)

    def worker(self, command: list[str] | None = None, **changes: Any) -> "Worker":
        """Starts the worker under test, or another one, and waits until it has run a task."""
        worker = Worker(self, command or machine.peer_command("taskiq"), self.environment(**changes))
        self.workers.append(worker)
        worker.wait_until_ready()
        return worker

    def send(self, name: str, *args: Any, kwargs: dict | None = None, id: str | None = None, **labels) -> AsyncTaskiqTask:
        kicker = AsyncKicker(task_name=f"interop.{name}", broker=self.broker, labels=labels)
        if id:
            kicker = kicker.with_task_id(id)
        return self.run(kicker.kiq(*args, **(kwargs or {})))

    def result(self, task: AsyncTaskiqTask, patience: float = PATIENCE) -> TaskiqResult:
        return self.run(task.wait_result(check_interval=CHECK_SECONDS, timeout=patience))

    def call(self, name: str, *args: Any, kwargs: dict | None = None, **labels) -> Any:
        result = self.result(self.send(name, *args, kwargs=kwargs, **labels))
        result.raise_for_error()
        return result.return_value

    def is_answered(self, task: AsyncTaskiqTask) -> bool:
        return self.run(task.is_ready())

    def publish(self, body: bytes) -> None:
        """Publishes a message whose bytes are taken as they are."""
        if self.kind == "list":
            self.redis.lpush(self.queue, body)
        elif self.kind == "pubsub":
            self.redis.publish(self.queue, body)
        elif self.kind == "stream":
            self.redis.xadd(self.queue, {"data": body})
        else:
            self.run(self._publish_amqp(body))

    async def _publish_amqp(self, body: bytes) -> None:
        async with await aio_pika.connect(self.broker_url) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange("taskiq", ensure=False)
            await exchange.publish(aio_pika.Message(body=body), routing_key=self.queue)

    def close(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        self.run(self.broker.shutdown())
        self.runner.close()
        machine.DATABASES.give_back(self.database)


class Worker:
    """A process that runs the tasks of the suite."""

    def __init__(self, site: Site, command: list[str], environment: dict[str, str]) -> None:
        self.site = site
        self.process = Process(f"TaskIQ worker on {site.kind}", command, environment)

    def wait_until_ready(self) -> None:
        """A channel forgets what nobody hears, so it is asked again and again."""

        def answers() -> bool:
            if not self.process.is_alive():
                raise AssertionError(f"the worker has ended:\n{self.process.said()}")
            probe = self.site.send("add", 1, 1)
            try:
                return self.site.result(probe, 0.5).return_value == 2
            except Exception:  # the client's own kind of timeout
                return False

        machine.until(answers, "the worker to answer", START_PATIENCE)


def message(name: str, *args: Any, **changes: Any) -> dict[str, Any]:
    """A message as it is on the wire."""
    return {
        "task_id": uuid.uuid4().hex,
        "task_name": f"interop.{name}",
        "labels": {},
        "labels_types": {},
        "args": list(args),
        "kwargs": {},
        **changes,
    }


def encoded(parts: dict[str, Any]) -> bytes:
    return json.dumps(parts).encode()
