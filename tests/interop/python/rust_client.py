"""Our client in Rust, as a program: one call in, one line of JSON out."""

import json
import os
import subprocess
from typing import Any

import machine

LIMIT = 90


class Client:
    def __init__(self, protocol: str, environment: dict[str, Any]) -> None:
        self.command = [machine.named("INTEROP_CLIENT"), "--protocol", protocol]
        self.environment = {**os.environ, **machine.text_environment(environment)}

    def run(self, *arguments: str, call: Any = None) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*self.command, *arguments],
            input=None if call is None else json.dumps(call),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )

    def enqueue(self, call: dict[str, Any]) -> dict[str, Any]:
        return self._answer(self.run("enqueue", call=call))

    def wait(self, id: str) -> dict[str, Any]:
        return self._answer(self.run("await", id))

    def result_of(self, call: dict[str, Any]) -> Any:
        answer = self.wait(self.enqueue(call)["id"])
        assert answer["state"] == "SUCCESS", answer
        return answer["result"]

    @staticmethod
    def _answer(finished: subprocess.CompletedProcess) -> dict[str, Any]:
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout.splitlines()[-1])


def task(name: str, *args: Any, kwargs: dict | None = None, immutable: bool = False, **options: Any) -> dict[str, Any]:
    return {
        "kind": "task",
        "task": f"interop.{name}",
        "args": list(args),
        "kwargs": kwargs or {},
        "immutable": immutable,
        "options": options,
    }


def chain(*tasks: dict) -> dict[str, Any]:
    return {"kind": "chain", "tasks": list(tasks)}


def group(*tasks: dict) -> dict[str, Any]:
    return {"kind": "group", "tasks": list(tasks)}


def chord(tasks: list[dict], body: dict) -> dict[str, Any]:
    return {"kind": "chord", "tasks": tasks, "body": body}
