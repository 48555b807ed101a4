"""TaskIQ: BENCH_URL=redis://... python peer.py TASKS PROCESSES

The stream broker, which acknowledges; results are not stored, unless BENCH_RESULTS names a Redis for them. 100 tasks at once
in each worker process. It has no bulk enqueue: tasks are sent one by one.
"""

import asyncio
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import redis
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

sys.path.append(str(Path(__file__).parent.parent))
import drained

URL = os.environ["BENCH_URL"]
RESULTS = os.environ.get("BENCH_RESULTS")
QUEUE = os.environ.get("BENCH_QUEUE") or f"windlass-bench-peer-{os.getpid()}"

broker = RedisStreamBroker(url=URL, queue_name=QUEUE, consumer_group_name=f"{QUEUE}-group")
if RESULTS:
    results = RedisAsyncResultBackend(RESULTS, result_ex_time=120, prefix_str=QUEUE)
    broker = broker.with_result_backend(results)


@broker.task(task_name="noop")
async def noop():
    pass


async def enqueue(tasks):
    await broker.startup()
    began = time.monotonic()
    for _ in range(tasks):
        await noop.kiq()
    rate = tasks / (time.monotonic() - began)
    await broker.shutdown()
    return rate


def main(tasks, processes):
    rate = asyncio.run(enqueue(tasks))
    server = redis.Redis.from_url(URL)

    def left():
        group = server.xinfo_groups(QUEUE)[0]
        return group["lag"] + group["pending"]

    assert left() == tasks, "every task is in the stream"
    command = [sys.executable, "-m", "taskiq", "worker", "peer:broker", "--workers", str(processes)]
    command += ["--max-async-tasks", "100", "--log-level", "ERROR"]
    environment = {**os.environ, "BENCH_QUEUE": QUEUE}
    drain, cpu = drained.drain(command, tasks, left, cwd=Path(__file__).parent, env=environment)
    for key in server.scan_iter(f"*{QUEUE}*"):
        server.delete(key)
    answer = {"peer": "taskiq", "version": version("taskiq"), "enqueue_tasks_per_s": rate}
    print(json.dumps({**answer, "drain_tasks_per_s": drain, "cpu_s": cpu}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
