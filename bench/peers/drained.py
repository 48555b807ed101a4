"""Times how a Python peer's worker drains a backlog, from outside: what is left, and the CPU of its processes.

A worker needs seconds to start, so the time begins when the first tasks are gone.
"""

import os
import signal
import subprocess
import sys
import time

LOOK_EVERY_S = 0.01
PATIENCE_S = 300


def cpu_of_tree(root):
    """Seconds of CPU that a process and all below it have used."""
    parents, ticks = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(name)] = int(fields[1])
        # With what its children that have ended used.
        ticks[int(name)] = sum(map(int, fields[11:15]))
    tree, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree, grown = tree | more, bool(more)
    return sum(ticks.get(pid, 0) for pid in tree) / os.sysconf("SC_CLK_TCK")


def drain(command, tasks, left, **options):
    """Starts a worker, waits until `left()` is 0, stops it; answers tasks a second and its CPU seconds meanwhile."""
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        deadline = time.monotonic() + PATIENCE_S
        began = cpu = first = None
        while True:
            now = left()
            if began is None and now < tasks:
                began, first, cpu = time.monotonic(), now, cpu_of_tree(worker.pid)
            if now == 0:
                break
            if worker.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the worker has not drained the queue: {now} tasks are left")
            time.sleep(LOOK_EVERY_S)
        seconds = time.monotonic() - began
        cpu = cpu_of_tree(worker.pid) - cpu
        # As if it had used as much for each of the first ones.
        return max(first, 1) / max(seconds, 1e-9), cpu * tasks / max(first, 1)
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(timeout=20)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
