"""Celery: BENCH_URL=redis://... python peer.py TASKS PROCESSES

Prefork, one child for each process. Results are ignored, which is what makes it fastest, unless BENCH_RESULTS names a Redis
for them. The broker may be RabbitMQ. It has no bulk enqueue: tasks are sent one by one over one connection.
"""

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from celery import Celery

sys.path.append(str(Path(__file__).parent.parent))
import drained

URL = os.environ["BENCH_URL"]
RESULTS = os.environ.get("BENCH_RESULTS")
QUEUE = os.environ.get("BENCH_QUEUE") or f"windlass-bench-peer-{os.getpid()}"
OVER_REDIS = URL.startswith("redis")
# RabbitMQ does not tell at once how many are delivered and not acknowledged: each task leaves a byte in this file.
MARKS = os.environ.get("BENCH_MARKS")
marks = os.open(MARKS, os.O_WRONLY | os.O_APPEND) if MARKS else None

app = Celery("peer", broker=URL, backend=RESULTS)
# Keys of its own, so that nothing of a service in the same database is touched.
own_keys = {"global_keyprefix": f"{QUEUE}:"}
app.conf.update(
    task_default_queue=QUEUE,
    task_ignore_result=not RESULTS,
    result_expires=120,
    result_backend_transport_options=own_keys,
    worker_prefetch_multiplier=100,
    broker_connection_retry_on_startup=True,
    broker_transport_options=own_keys if OVER_REDIS else {},
)


@app.task(name="noop")
def noop():
    if marks is not None:
        os.write(marks, b".")


def drain(left, tasks, processes, **environment):
    command = [sys.executable, "-m", "celery", "-A", "peer", "worker", "--pool", "prefork"]
    command += ["--concurrency", str(processes), "--loglevel", "ERROR"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    environment = {**os.environ, "BENCH_QUEUE": QUEUE, **environment}
    return drained.drain(command, tasks, left, cwd=Path(__file__).parent, env=environment)


def drain_redis(connection, tasks, processes):
    # The transport's client adds the prefix to some commands only; raw keys are the same for all.
    raw = connection.default_channel.client.execute_command
    left = lambda: raw("LLEN", QUEUE) + raw("HLEN", "unacked")
    assert left() == tasks, "every task is in the queue"
    return drain(left, tasks, processes)


def drain_rabbitmq(connection, tasks, processes):
    channel = connection.default_channel
    try:
        # The broker counts what was sent a little later.
        ready = lambda: channel.queue_declare(QUEUE, passive=True).message_count
        deadline = time.monotonic() + 10
        while ready() < tasks and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ready() == tasks, "every task is in the queue"
        with tempfile.NamedTemporaryFile() as file:
            return drain(lambda: tasks - os.path.getsize(file.name), tasks, processes, BENCH_MARKS=file.name)
    finally:
        channel.queue_delete(QUEUE)


def forget(url):
    import redis

    plain = redis.Redis.from_url(url)
    for key in plain.scan_iter(f"{QUEUE}*"):
        plain.delete(key)


def main(tasks, processes):
    began = time.monotonic()
    for _ in range(tasks):
        noop.delay()
    enqueue = tasks / (time.monotonic() - began)
    with app.connection_for_read() as connection:
        drain, cpu = (drain_redis if OVER_REDIS else drain_rabbitmq)(connection, tasks, processes)
    for url in {URL if OVER_REDIS else None, RESULTS} - {None}:
        forget(url)
    answer = {"peer": "celery", "version": version("celery"), "enqueue_tasks_per_s": enqueue}
    print(json.dumps({**answer, "drain_tasks_per_s": drain, "cpu_s": cpu}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
