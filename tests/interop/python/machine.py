"""What stands around the programs under test: servers, processes, and waiting for what is to come.

The servers are named by the environment (`cargo xtask interop` starts private ones). Every program is started in a
process group of its own and ends with its test; what it said is in a file that is shown when a test fails.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Callable, TypeVar

import redis

HERE = Path(__file__).parent
PEER = os.environ.get("INTEROP_PEER") or "ours"

# Long enough for a busy machine; nobody waits for it when all is well.
PATIENCE = 30.0
START_PATIENCE = 60.0
END_PATIENCE = 20.0
POLL = 0.02

T = TypeVar("T")


def named(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise RuntimeError(f"{variable} is not set: run `cargo xtask interop`")
    return value


def until(look: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T:
    """Looks until there is something. For what has no event of its own."""
    deadline = time.monotonic() + patience
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:.0f} s in vain for {what}; seen last: {seen!r}")
        threading.Event().wait(POLL)


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# --- servers ----------------------------------------------------------------------------------------------------------


class Databases:
    """Numbered databases of one Redis: each site has one to itself, so channels and keys never meet."""

    def __init__(self) -> None:
        self.server = named("WINDLASS_TEST_REDIS_URL").rsplit("/", 1)[0]
        # Database 0 is what other tests of the same run use.
        self.free = list(range(1, 16))

    def take(self) -> "Database":
        number = self.free.pop(0)
        database = Database(number, f"{self.server}/{number}")
        database.client.flushdb()
        return database

    def give_back(self, database: "Database") -> None:
        database.client.flushdb()
        database.client.close()
        self.free.append(database.number)


class Database:
    def __init__(self, number: int, url: str) -> None:
        self.number = number
        self.url = url
        self.client = redis.Redis.from_url(url)


DATABASES = Databases()


def rabbitmq_url() -> str:
    """The RabbitMQ of this run. It is started by the first connection, which takes some seconds."""
    url = named("WINDLASS_TEST_RABBITMQ_URL")
    host, _, port = url.rsplit("@", 1)[-1].split("/", 1)[0].partition(":")

    def greets() -> bool:
        try:
            with socket.create_connection((host, int(port or 5672)), timeout=2) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(connection.recv(1))
        except OSError:
            return False

    until(greets, "RabbitMQ to greet", START_PATIENCE)
    return url


# --- processes --------------------------------------------------------------------------------------------------------


class Process:
    """A program in a process group of its own."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.log = Path(tempfile.mkdtemp(prefix="interop-")) / "log"
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=HERE,
            )
        RUNNING.append(self)

    @property
    def pid(self) -> int:
        return self.child.pid

    def is_alive(self) -> bool:
        return self.child.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """The end that nobody can prepare for: the process and all that it started."""
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait(END_PATIENCE)
        self._forget()

    def stop(self) -> int:
        """Asks it to end, and answers its exit code."""
        if self.is_alive():
            self.child.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Waits for it to end by itself."""
        try:
            code = self.child.wait(END_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within {END_PATIENCE:.0f} s") from None
        self._forget()
        return code

    def _forget(self) -> None:
        if self in RUNNING:
            RUNNING.remove(self)


RUNNING: list[Process] = []


def kill_all() -> None:
    for process in list(RUNNING):
        process.kill()


def reference_command(protocol: str) -> list[str]:
    """A worker from Python."""
    return [sys.executable, str(HERE / "reference_worker.py"), "--protocol", protocol]


def peer_command(protocol: str) -> list[str]:
    """The worker under test."""
    if PEER == "python":
        return reference_command(protocol)
    return [*shlex.split(named("INTEROP_WORKER")), "--protocol", protocol]


def text_environment(environment: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in environment.items() if value is not None}
