"""The other direction: our client in Rust enqueues for a real TaskIQ worker and reads its results."""

import pytest

import machine
from rust_client import Client
from taskiq_site import Site

PAIRS = [("list", "pickle"), ("list", "json"), ("stream", "pickle"), ("pubsub", "json"), ("aiopika", "pickle")]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def python_site(request):
    """A site whose worker is always the one from Python."""
    site = Site(*request.param)
    site.shared = site.worker(command=machine.reference_command("taskiq"))
    yield site
    site.close()


@pytest.fixture
def client(python_site: Site) -> Client:
    return Client("taskiq", python_site.environment())


def call(name: str, *args, **more) -> dict:
    return {"task": f"interop.{name}", "args": list(args), **more}


def test_a_task_runs_and_its_result_is_read(client: Client):
    assert client.result_of(call("add", 2, 3)) == 5
    assert client.result_of(call("add", kwargs={"x": "a", "y": "b"})) == "ab"


def test_any_arguments_come_back_as_they_were(client: Client):
    args = [None, True, -1, 2**53, 1.25, "", [], {}, "grüße 日本語 🚀", {"deep": [{"er": [1]}]}]
    assert client.result_of(call("echo", *args, kwargs={"ключ": 1})) == {"args": args, "kwargs": {"ключ": 1}}


def test_an_error_is_told_with_its_class(client: Client):
    answer = client.wait(client.enqueue(call("fail", "it is broken"))["id"])
    assert answer == {"state": "FAILURE", "result": None, "error": {"type": "ValueError", "message": "it is broken"}}


def test_labels_keep_their_types(client: Client, python_site: Site):
    labels = {"number": 5, "text": "x", "ratio": 1.5, "yes": True}
    sent = client.enqueue(call("add", 1, 2, labels=labels))
    assert client.wait(sent["id"])["result"] == 3
    result = python_site.run(python_site.broker.result_backend.get_result(sent["id"]))
    assert {name: result.labels[name] for name in labels} == labels


def test_a_timeout_is_sent(client: Client):
    answer = client.wait(client.enqueue(call("sleep", 60, labels={"timeout": 0.5}))["id"])
    assert answer["error"]["type"] == "TimeoutError"


def test_retries_are_asked_for(client: Client):
    labels = {"retry_on_error": True, "max_retries": 4}
    assert client.result_of(call("flaky", "rust", 2, labels=labels)) == {"key": "rust", "attempts": 3}


def test_an_id_of_the_callers_own_is_kept(client: Client):
    id = machine.unique("order")
    assert client.enqueue(call("add", 1, 2, task_id=id)) == {"id": id}
    assert client.wait(id)["result"] == 3


@pytest.mark.parametrize("wrong", [{}, {"task": 5}, {"task": "a", "args": {}}, {"task": "a", "label": {}}])
def test_a_call_that_makes_no_sense_is_refused(client: Client, wrong: dict):
    finished = client.run("enqueue", call=wrong)
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: ")
