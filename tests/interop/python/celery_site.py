"""A broker, a Redis for results, and Celery workers on them: what a test of Celery stands on.

A site has a Redis database, queue names and node names to itself. Clients are the real Celery: applications that
know no task, only names.
"""

import base64
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from celery import Celery, Signature
from celery.events.receiver import EventReceiver
from celery.events.state import State
from celery.result import AsyncResult
from kombu import Exchange, Queue

import machine
from machine import PATIENCE, START_PATIENCE, Process, unique, until

# How long a node may take to answer a control message: Flower waits no longer.
CONTROL_PATIENCE = 1.0


class Site:
    def __init__(self, broker: str) -> None:
        self.broker = broker
        self.database = machine.DATABASES.take()
        self.broker_url = self.database.url if broker == "redis" else machine.rabbitmq_url()
        self.queue = unique("interop")
        self.apps: list[Celery] = []
        self.workers: list["Worker"] = []
        self.app = self.client()

    @property
    def redis(self):
        return self.database.client

    def client(self, backend: str | None = None, **settings: Any) -> Celery:
        """An application as a producer has one."""
        app = Celery("producer", broker=self.broker_url, backend=backend or self.database.url, set_as_current=False)
        app.conf.update(
            {
                "task_default_queue": self.queue,
                "result_expires": 3600,
                "broker_connection_retry_on_startup": True,
                # A test that is started while the server is busy must not fail for that.
                "broker_connection_timeout": 20,
                **settings,
            }
        )
        self.apps.append(app)
        return app

    def worker(self, command: list[str] | None = None, **environment: Any) -> "Worker":
        """Starts the worker under test, or another one, and waits until it answers."""
        worker = Worker(self, command or machine.peer_command("celery"), environment)
        self.workers.append(worker)
        worker.wait_until_ready()
        return worker

    def send(self, name: str, *args: Any, kwargs: dict | None = None, **options: Any) -> AsyncResult:
        return self.app.send_task(f"interop.{name}", args=args, kwargs=kwargs or {}, **options)

    def call(self, name: str, *args: Any, kwargs: dict | None = None, **options: Any) -> Any:
        return self.send(name, *args, kwargs=kwargs, **options).get(timeout=PATIENCE)

    def sig(self, name: str, *args: Any, immutable: bool = False, kwargs: dict | None = None, **options) -> Signature:
        return Signature(
            f"interop.{name}", args=args, kwargs=kwargs or {}, options=options, app=self.app, immutable=immutable
        )

    def wait_for_state(self, result: AsyncResult, state: str) -> None:
        until(lambda: result.state == state, f"{result.id} to be {state}")

    # --- messages as they are on the wire -----------------------------------------------------------------------------

    def publish(
        self,
        body: bytes | str,
        headers: dict[str, Any],
        content_type: str = "application/json",
        content_encoding: str = "utf-8",
        queue: str | None = None,
        **properties: Any,
    ) -> None:
        """Publishes a message whose body is taken as it is."""
        with self.app.connection_for_write() as connection, connection.channel() as channel:
            self.app.amqp.Producer(channel).publish(
                body,
                exchange="",
                routing_key=queue or self.queue,
                headers=headers,
                content_type=content_type,
                content_encoding=content_encoding,
                # The queue is there: its worker has declared it.
                declare=[],
                retry=False,
                **properties,
            )

    def publish_task(self, task: str, *args: Any, kwargs: dict | None = None, **headers: Any) -> AsyncResult:
        """Publishes a task with headers of its own, as other producers might."""
        id = headers.pop("id", None) or str(uuid.uuid4())
        body = json.dumps([list(args), kwargs or {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
        self.publish(body, {**task_headers(task, id), **headers}, correlation_id=id, reply_to="")
        return AsyncResult(id, app=self.app)

    def push_raw(self, element: bytes | str) -> None:
        """Puts an element into the list of the queue, whatever it is."""
        assert self.broker == "redis"
        self.redis.lpush(self.queue, element)

    # --- control ------------------------------------------------------------------------------------------------------

    def inspect(self, worker: "Worker"):
        return self.app.control.inspect(destination=[worker.hostname], timeout=CONTROL_PATIENCE, limit=1)

    def control(self, worker: "Worker", method: str, **arguments: Any) -> Any:
        """Asks one node and answers its reply, which must come within a second."""
        replies = self.app.control.broadcast(
            method, arguments=arguments, destination=[worker.hostname], reply=True, timeout=CONTROL_PATIENCE, limit=1
        )
        assert replies, f"{method} was not answered within {CONTROL_PATIENCE} s"
        return replies[0][worker.hostname]

    def close(self) -> None:
        for worker in list(self.workers):
            worker.process.kill()
        for app in self.apps:
            app.close()
        machine.DATABASES.give_back(self.database)


class Worker:
    """A process that runs the tasks of the suite."""

    def __init__(self, site: Site, command: list[str], environment: dict[str, Any]) -> None:
        self.site = site
        self.hostname = unique("interop") + "@test"
        settings = {
            "INTEROP_BROKER": site.broker_url,
            "INTEROP_RESULT": site.database.url,
            "INTEROP_HOSTNAME": self.hostname,
            "INTEROP_QUEUES": site.queue,
            "INTEROP_CONCURRENCY": 4,
            **environment,
        }
        self.process = Process(f"worker {self.hostname}", command, machine.text_environment(settings))

    def wait_until_ready(self) -> None:
        def answers() -> bool:
            if not self.process.is_alive():
                raise AssertionError(f"the worker has ended:\n{self.process.said()}")
            control = self.site.app.control
            return bool(control.broadcast("ping", destination=[self.hostname], reply=True, timeout=0.3, limit=1))

        until(answers, f"{self.hostname} to answer", START_PATIENCE)

    def stop(self) -> int:
        return self.process.stop()

    def kill(self) -> None:
        self.process.kill()


class Listener:
    """A real event receiver in a thread, with the state that monitors keep."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.state = State()
        self.events: list[dict[str, Any]] = []
        self.changed = threading.Condition()
        self.receiver: EventReceiver | None = None
        self.listening = threading.Event()
        self.thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        with self.app.connection_for_read() as connection:
            self.receiver = self.app.events.Receiver(connection, handlers={"*": self._hear})
            # By itself it would ask for a heartbeat; what is heard here is what the worker says by itself.
            self.receiver.on_consume_ready = lambda *_, **__: self.listening.set()
            for _ in self.receiver.consume(limit=None, timeout=None, safety_interval=0.2):
                pass

    def _hear(self, event: dict[str, Any]) -> None:
        with self.changed:
            self.events.append(event)
            self.state.event(event)
            self.changed.notify_all()

    def wait(self, what: str, fits: Callable[[dict[str, Any]], bool], patience: float = PATIENCE) -> dict[str, Any]:
        """The first event that fits, heard already or still to come."""
        with self.changed:
            found = self.changed.wait_for(lambda: [event for event in self.events if fits(event)], patience)
            assert found, f"{what} was not heard; heard: {[(e['type'], e.get('uuid')) for e in self.events]}"
            return found[0]

    def wait_for_task(self, type: str, id: str) -> dict[str, Any]:
        return self.wait(f"{type} of {id}", lambda event: event["type"] == type and event.get("uuid") == id)

    def wait_for_worker(self, type: str, hostname: str) -> dict[str, Any]:
        return self.wait(
            f"{type} of {hostname}", lambda event: event["type"] == type and event["hostname"] == hostname
        )

    def types_of(self, id: str) -> list[str]:
        with self.changed:
            return [event["type"] for event in self.events if event.get("uuid") == id]


@contextmanager
def listening(app: Celery) -> Iterator[Listener]:
    listener = Listener(app)
    listener.thread.start()
    assert listener.listening.wait(PATIENCE), "the receiver does not listen"
    try:
        yield listener
    finally:
        listener.receiver.should_stop = True
        listener.thread.join(PATIENCE)


def task_headers(task: str, id: str) -> dict[str, Any]:
    return {
        "lang": "py",
        "task": task,
        "id": id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": id,
        "parent_id": None,
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "gen1@test",
        "ignore_result": False,
    }


def element(body: str | None, headers: dict[str, Any] | None, properties: dict[str, Any] | None) -> dict[str, Any]:
    """An element of a Redis list; members that are `None` are left out."""
    parts = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    return {name: part for name, part in parts.items() if part is not None}


def element_properties(queue: str) -> dict[str, Any]:
    return {
        "correlation_id": str(uuid.uuid4()),
        "reply_to": "",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }


def base64_text(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def priority_queue(name: str, max_priority: int) -> Queue:
    return Queue(name, Exchange(name), routing_key=name, queue_arguments={"x-max-priority": max_priority})
