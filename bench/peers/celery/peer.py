"""Celery: BENCH_URL=redis://... python peer.py TASKS PROCESSES

Prefork, one child for each process; results are ignored, which is what makes it fastest. It has no bulk enqueue: tasks
are sent one by one over one connection.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

from celery import Celery

sys.path.append(str(Path(__file__).parent.parent))
import drained

QUEUE = os.environ.get("BENCH_QUEUE") or f"windlass-bench-peer-{os.getpid()}"

app = Celery("peer", broker=os.environ["BENCH_URL"])
app.conf.update(
    task_default_queue=QUEUE,
    task_ignore_result=True,
    worker_prefetch_multiplier=100,
    broker_connection_retry_on_startup=True,
    # Keys of its own, so that nothing of a service in the same database is touched.
    broker_transport_options={"global_keyprefix": f"{QUEUE}:"},
)


@app.task(name="noop")
def noop():
    pass


def main(tasks, processes):
    began = time.monotonic()
    for _ in range(tasks):
        noop.delay()
    enqueue = tasks / (time.monotonic() - began)
    with app.connection_for_read() as connection:
        client = connection.default_channel.client
        # The transport's client adds the prefix to some commands only; raw keys are the same for all.
        raw = client.execute_command
        left = lambda: raw("LLEN", QUEUE) + raw("HLEN", "unacked")
        assert left() == tasks, "every task is in the queue"
        command = [sys.executable, "-m", "celery", "-A", "peer", "worker", "--pool", "prefork"]
        command += ["--concurrency", str(processes), "--loglevel", "ERROR"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        environment = {**os.environ, "BENCH_QUEUE": QUEUE}
        drain, cpu = drained.drain(command, tasks, left, cwd=Path(__file__).parent, env=environment)
        import redis

        plain = redis.Redis.from_url(os.environ["BENCH_URL"])
        for key in plain.scan_iter(f"{QUEUE}*"):
            plain.delete(key)
    answer = {"peer": "celery", "version": version("celery"), "enqueue_tasks_per_s": enqueue}
    print(json.dumps({**answer, "drain_tasks_per_s": drain, "cpu_s": cpu}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
