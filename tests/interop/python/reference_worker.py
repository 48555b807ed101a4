"""The tasks of the suite on a real Celery application or a real TaskIQ broker.

It reads the environment that our worker reads, so the suite can be proved against Python first: what fails here is a
mistake of the suite.

    python reference_worker.py [--protocol celery|taskiq]
"""

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Mapping
from typing import Annotated, Any

RESULT_SECONDS = 3600
CELERY_RETRIES = 4
CELERY_RETRY_SECONDS = 0.5
TASKIQ_RUNS = 5


def number(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def is_on(name: str, default: str = "0") -> bool:
    return (os.environ.get(name) or default) == "1"


# --- Celery -----------------------------------------------------------------------------------------------------------


def queue_of(name: str):
    from kombu import Exchange, Queue

    arguments = {}
    if is_on("INTEROP_QUORUM"):
        arguments["x-queue-type"] = "quorum"
    if number("INTEROP_MAX_PRIORITY", 0):
        arguments["x-max-priority"] = number("INTEROP_MAX_PRIORITY", 0)
    return Queue(name, Exchange(name), routing_key=name, queue_arguments=arguments or None)


def celery_application():
    from celery import Celery

    queues = (os.environ.get("INTEROP_QUEUES") or "celery").split(",")
    app = Celery("interop", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_RESULT"])
    options: dict[str, Any] = {}
    if os.environ.get("INTEROP_VISIBILITY"):
        options["visibility_timeout"] = number("INTEROP_VISIBILITY", 3600)
    prefix = os.environ.get("INTEROP_KEYPREFIX")
    if prefix:
        options["global_keyprefix"] = prefix
        app.conf.result_backend_transport_options = {"global_keyprefix": prefix}
    app.conf.update(
        broker_transport_options=options,
        broker_connection_retry_on_startup=True,
        result_expires=RESULT_SECONDS,
        result_extended=is_on("INTEROP_RESULT_EXTENDED"),
        task_default_queue=queues[0],
        task_queues=[queue_of(name) for name in queues],
        task_track_started=True,
        task_acks_late=is_on("INTEROP_ACKS_LATE", "1"),
        task_reject_on_worker_lost=True,
        worker_concurrency=number("INTEROP_CONCURRENCY", 4),
        worker_prefetch_multiplier=number("INTEROP_PREFETCH", 4),
        worker_hijack_root_logger=False,
    )

    @app.task(name="interop.add")
    def add(x, y):
        return x + y

    @app.task(name="interop.echo")
    def echo(*args, **kwargs):
        return {"args": list(args), "kwargs": kwargs}

    @app.task(name="interop.fail")
    def fail(message):
        raise ValueError(message)

    @app.task(name="interop.flaky", bind=True)
    def flaky(self, key, fail_times):
        if self.request.retries < fail_times:
            error = RuntimeError(f"flaky {key}")
            raise self.retry(exc=error, countdown=CELERY_RETRY_SECONDS, max_retries=CELERY_RETRIES)
        return {"key": key, "attempts": self.request.retries + 1}

    @app.task(name="interop.sleep")
    def sleep(seconds):
        time.sleep(seconds)
        return seconds

    @app.task(name="interop.chain_double")
    def chain_double(x):
        return x * 2

    @app.task(name="interop.sum_list")
    def sum_list(xs):
        return sum(xs)

    return app


def run_celery() -> None:
    app = celery_application()
    arguments = ["worker", "-n", os.environ.get("INTEROP_HOSTNAME") or "interop@localhost", "--loglevel", "INFO"]
    # Gossip and mingle look for other workers for a second before anything starts.
    arguments += ["--without-gossip", "--without-mingle"]
    if is_on("INTEROP_EVENTS"):
        arguments.append("-E")
    app.worker_main(arguments)


# --- TaskIQ -----------------------------------------------------------------------------------------------------------


def taskiq_broker(environment: Mapping[str, str] = os.environ):
    """The broker that an environment names; the clients of the suite use the same."""
    from taskiq.serializers import JSONSerializer, PickleSerializer
    from taskiq_redis import ListQueueBroker, PubSubBroker, RedisAsyncResultBackend, RedisStreamBroker

    kind = environment.get("INTEROP_TASKIQ_KIND") or "list"
    queue = environment.get("INTEROP_QUEUE") or "taskiq"
    url = environment["INTEROP_BROKER"]
    serializer = JSONSerializer() if environment.get("INTEROP_SERIALIZER") == "json" else PickleSerializer()
    if kind == "list":
        broker = ListQueueBroker(url, queue_name=queue)
    elif kind == "stream":
        idle = int(environment.get("INTEROP_IDLE_MS") or 600_000)
        broker = RedisStreamBroker(url, queue_name=queue, idle_timeout=idle, xread_block=200)
    elif kind == "pubsub":
        broker = PubSubBroker(url, queue_name=queue)
    elif kind == "aiopika":
        from taskiq_aio_pika import AioPikaBroker, Queue

        broker = AioPikaBroker(url).with_queue(Queue(name=queue))
    else:
        raise SystemExit(f"INTEROP_TASKIQ_KIND is `{kind}`: use list, stream, pubsub or aiopika")
    results = RedisAsyncResultBackend(
        environment["INTEROP_RESULT"], result_ex_time=RESULT_SECONDS, serializer=serializer
    )
    return broker.with_result_backend(results)


def register_taskiq(broker) -> None:
    from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends

    broker.add_middlewares(SimpleRetryMiddleware(default_retry_count=TASKIQ_RUNS))

    @broker.task(task_name="interop.add")
    async def add(x, y):
        return x + y

    @broker.task(task_name="interop.echo")
    async def echo(*args, **kwargs):
        return {"args": list(args), "kwargs": kwargs}

    @broker.task(task_name="interop.fail")
    async def fail(message):
        raise ValueError(message)

    @broker.task(task_name="interop.flaky")
    async def flaky(key, fail_times, context: Annotated[Context, TaskiqDepends()]):
        retries = int(context.message.labels.get("_retries", 0))
        if retries < fail_times:
            raise RuntimeError(f"flaky {key}")
        return {"key": key, "attempts": retries + 1}

    @broker.task(task_name="interop.sleep")
    async def sleep(seconds):
        await asyncio.sleep(seconds)
        return seconds

    @broker.task(task_name="interop.chain_double")
    async def chain_double(x):
        return x * 2

    @broker.task(task_name="interop.sum_list")
    async def sum_list(xs):
        return sum(xs)


async def run_taskiq() -> None:
    from taskiq.api import run_receiver_task

    broker = taskiq_broker()
    register_taskiq(broker)
    # Before the startup: a broker that only sends opens no channel to read from.
    broker.is_worker_process = True
    await broker.startup()
    receiver = asyncio.create_task(
        run_receiver_task(broker, max_async_tasks=number("INTEROP_CONCURRENCY", 4), max_prefetch=0)
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, receiver.cancel)
    try:
        await receiver
    except asyncio.CancelledError:
        pass
    await broker.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--protocol", choices=["celery", "taskiq"], default="celery")
    if parser.parse_args().protocol == "celery":
        run_celery()
    else:
        asyncio.run(run_taskiq())


if __name__ == "__main__":
    main()
