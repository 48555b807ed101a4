"""TaskIQ on each of its brokers, with results in pickle and in JSON."""

import asyncio
from datetime import datetime, timedelta, timezone

import pytest
from taskiq import TaskiqScheduler
from taskiq.cli.scheduler.run import SchedulerLoop
from taskiq.exceptions import TaskiqResultTimeoutError
from taskiq.scheduler.scheduled_task import ScheduledTask
from taskiq_redis import ListRedisScheduleSource

from machine import PATIENCE, until
from taskiq_site import Site, encoded, message

KINDS = ["list", "stream", "pubsub", "aiopika"]
SILENCE = 0.6
# Until a lease of ours is over, or an entry has been idle for long enough.
HANDING_OVER = 60.0


@pytest.fixture(scope="module", params=[(kind, serializer) for kind in KINDS for serializer in ("pickle", "json")],
                ids=lambda pair: "-".join(pair))
def taskiq(request):
    site = Site(*request.param)
    site.shared = site.worker()
    yield site
    site.close()


@pytest.fixture
def own_taskiq(request):
    site = Site(*request.param)
    yield site
    site.close()


def expect_life(site: Site) -> None:
    assert [site.call("add", number, 1) for number in range(3)] == [1, 2, 3]
    assert site.shared.process.is_alive()


def test_positional_arguments_reach_the_task(taskiq: Site):
    assert taskiq.call("add", 2, 3) == 5
    assert taskiq.call("add", "a", "b") == "ab"


def test_keyword_arguments_reach_the_task(taskiq: Site):
    assert taskiq.call("add", kwargs={"x": 40, "y": 2}) == 42
    assert taskiq.call("add", 1, kwargs={"y": 1.5}) == 2.5


def test_any_arguments_come_back_as_they_were(taskiq: Site):
    args = [None, True, -1, 2**53, 1.25, "", [], {}, {"deep": [{"er": [1, [2, [3]]]}]}]
    kwargs = {"flag": False, "none": None, "text": "x"}
    assert taskiq.call("echo", *args, kwargs=kwargs) == {"args": args, "kwargs": kwargs}


def test_text_of_any_language_comes_back_as_it_was(taskiq: Site):
    texts = ["grüße", "日本語", "🚀👩‍🚀", "\u0000\u001f", "it's \"quoted\" \\"]
    assert taskiq.call("echo", *texts, kwargs={"ключ": "значение"}) == {"args": texts, "kwargs": {"ключ": "значение"}}


def test_large_numbers_keep_every_digit(taskiq: Site):
    numbers = [2**63 - 1, -(2**63), 2**64 - 1, 2**64, -(10**30), 7**1000]
    assert taskiq.call("echo", *numbers)["args"] == numbers


def test_a_megabyte_goes_in_and_comes_back(taskiq: Site):
    text = "0123456789abcdef" * 65536
    assert taskiq.call("echo", text)["args"] == [text]


def test_labels_come_back_with_their_types(taskiq: Site):
    labels = {"number": 5, "text": "x", "ratio": 1.5, "yes": True, "no": False}
    result = taskiq.result(taskiq.send("add", 1, 2, **labels))
    assert {name: result.labels[name] for name in labels} == labels
    assert isinstance(result.labels["number"], int)
    assert result.labels["yes"] is True


def test_a_label_of_another_type_comes_back_as_text(taskiq: Site):
    result = taskiq.result(taskiq.send("add", 1, 2, tags=["a", "b"]))
    assert result.labels["tags"] == "['a', 'b']"


def test_a_result_says_how_long_it_took(taskiq: Site):
    result = taskiq.result(taskiq.send("sleep", 0.2))
    assert result.return_value == 0.2
    assert not result.is_err
    assert 0.15 <= result.execution_time < 5


def test_an_error_is_the_exception_of_its_class(taskiq: Site):
    result = taskiq.result(taskiq.send("fail", "it is broken"))
    assert result.is_err
    assert isinstance(result.error, ValueError)
    assert result.error.args == ("it is broken",)
    assert result.return_value is None


@pytest.mark.parametrize("args", [(1,), (1, 2, 3)])
def test_arguments_that_do_not_fit_are_a_type_error(taskiq: Site, args):
    result = taskiq.result(taskiq.send("add", *args))
    assert isinstance(result.error, TypeError)


def test_a_task_past_its_timeout_is_ended(taskiq: Site):
    result = taskiq.result(taskiq.send("sleep", 60, timeout=0.5))
    assert result.is_err
    assert isinstance(result.error, TimeoutError)


def test_a_task_within_its_timeout_succeeds(taskiq: Site):
    assert taskiq.call("sleep", 0.05, timeout=30) == 0.05


def test_a_task_is_retried_when_its_label_says_so(taskiq: Site):
    result = taskiq.result(taskiq.send("flaky", "a", 2, retry_on_error=True, max_retries=5))
    assert result.return_value == {"key": "a", "attempts": 3}
    assert result.labels["_retries"] == 2


def test_a_task_is_not_retried_without_the_label(taskiq: Site):
    result = taskiq.result(taskiq.send("flaky", "b", 1))
    assert isinstance(result.error, RuntimeError)
    assert result.error.args == ("flaky b",)


def test_the_number_of_runs_is_kept(taskiq: Site):
    result = taskiq.result(taskiq.send("flaky", "c", 100, retry_on_error=True, max_retries=3))
    assert isinstance(result.error, RuntimeError)
    assert result.labels["_retries"] == 2


def test_five_runs_are_the_default(taskiq: Site):
    result = taskiq.result(taskiq.send("flaky", "d", 4, retry_on_error=True))
    assert result.return_value == {"key": "d", "attempts": 5}
    result = taskiq.result(taskiq.send("flaky", "e", 5, retry_on_error=True))
    assert result.is_err


def test_the_retries_that_a_message_brings_are_counted(taskiq: Site):
    result = taskiq.result(taskiq.send("flaky", "f", 2, retry_on_error=True, max_retries=5, _retries=1))
    assert result.return_value == {"key": "f", "attempts": 3}


def test_a_task_with_an_id_of_its_own_is_answered_under_it(taskiq: Site):
    task = taskiq.send("add", 1, 2, id=f"order:{taskiq.queue}")
    assert taskiq.result(task).return_value == 3
    assert taskiq.redis.exists(f"order:{taskiq.queue}")


def test_results_expire_after_an_hour(taskiq: Site):
    task = taskiq.send("add", 1, 2)
    taskiq.result(task)
    assert 3500 < taskiq.redis.ttl(task.task_id) <= 3600


def test_an_unknown_task_is_dropped_without_an_answer(taskiq: Site):
    task = taskiq.send("no_such_task", 1)
    expect_life(taskiq)
    with pytest.raises(TaskiqResultTimeoutError):
        taskiq.result(task, SILENCE)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"this is not json", id="not_json"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe", id="not_utf8"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"null", id="null"),
        pytest.param(encoded({"task_id": "1"}), id="members_missing"),
        pytest.param(encoded(message("add", 1, 2, args="text")), id="args_text"),
        pytest.param(encoded(message("add", 1, 2, task_id=5)), id="id_number"),
        pytest.param(encoded(message("add", 1, 2, labels=None)), id="labels_null"),
        pytest.param(encoded(message("add", 1, 2, labels={"n": "x"}, labels_types={"n": 2})), id="label_of_wrong_type"),
        pytest.param(encoded(message("add", 1, 2, labels={"n": "x"}, labels_types={"n": 99})), id="label_of_no_type"),
        pytest.param(b"[" * 20_000 + b"]" * 20_000, id="too_deep"),
        pytest.param(b"cos\nabort\n(tR.", id="pickle"),
    ],
)
def test_a_worker_lives_on_after_a_message_that_is(taskiq: Site, body: bytes):
    taskiq.publish(body)
    expect_life(taskiq)


def test_a_message_without_types_of_labels_runs(taskiq: Site):
    parts = message("add", 20, 22)
    del parts["labels_types"]
    taskiq.publish(encoded({**parts, "unknown_member": True}))
    until(lambda: taskiq.redis.exists(parts["task_id"]), "the result")


def test_many_tasks_are_all_answered(taskiq: Site):
    tasks = [taskiq.send("add", number, number) for number in range(50)]
    assert [taskiq.result(task).return_value for task in tasks] == [2 * number for number in range(50)]


def test_a_schedule_of_a_real_scheduler_runs(taskiq: Site):
    source = ListRedisScheduleSource(taskiq.database.url, serializer=taskiq.data_serializer())
    id = f"scheduled-{taskiq.queue}"

    async def fire() -> None:
        await source.startup()
        await source.add_schedule(
            ScheduledTask(
                task_name="interop.add",
                labels={"origin": "schedule"},
                args=[40],
                kwargs={"y": 2},
                task_id=id,
                time=datetime.now(timezone.utc) + timedelta(milliseconds=200),
            )
        )
        loop = SchedulerLoop(TaskiqScheduler(taskiq.broker, [source]))
        running = asyncio.create_task(loop.run(update_interval=timedelta(seconds=1)))
        while not await taskiq.broker.result_backend.is_result_ready(id):
            await asyncio.sleep(0.05)
        running.cancel()

    taskiq.run(asyncio.wait_for(fire(), PATIENCE))
    result = taskiq.run(taskiq.broker.result_backend.get_result(id))
    assert result.return_value == 42
    assert result.labels["origin"] == "schedule"
    assert "schedule_id" in result.labels


@pytest.mark.parametrize("own_taskiq", [("stream", "pickle"), ("aiopika", "json")], ids="-".join, indirect=True)
def test_a_task_whose_worker_is_killed_is_finished_by_another(own_taskiq: Site):
    first = own_taskiq.worker(INTEROP_IDLE_MS=1000)
    task = own_taskiq.send("sleep", 2)
    wait_until_taken(own_taskiq)
    first.process.kill()
    own_taskiq.worker(INTEROP_IDLE_MS=1000)

    def finished() -> bool:
        # A worker from Python looks for what others left only when something comes.
        own_taskiq.call("add", 1, 1)
        return own_taskiq.is_answered(task)

    until(finished, "the task to be finished", HANDING_OVER)
    assert own_taskiq.result(task).return_value == 2


def wait_until_taken(site: Site) -> None:
    """Until the worker has the only message that is there."""
    if site.kind == "stream":
        # What the group was given, and not what is pending in it: ours has stored the task and let the entry go at once.
        def taken() -> bool:
            group = site.redis.xinfo_groups(site.queue)[0]
            return group["last-delivered-id"] == site.redis.xinfo_stream(site.queue)["last-generated-id"]

        until(taken, "the entry to be taken")
    else:
        # The broker counts what nobody has.
        import aio_pika

        async def ready() -> int:
            async with await aio_pika.connect(site.broker_url) as connection:
                channel = await connection.channel()
                queue = await channel.declare_queue(site.queue, passive=True)
                return queue.declaration_result.message_count

        until(lambda: site.run(ready()) == 0, "the message to be taken")


@pytest.mark.parametrize("own_taskiq", [(kind, "pickle") for kind in KINDS], ids="-".join, indirect=True)
def test_a_worker_ends_when_it_is_asked(own_taskiq: Site):
    worker = own_taskiq.worker()
    assert worker.process.stop() == 0


@pytest.mark.parametrize("own_taskiq", [("list", "pickle")], ids="-".join, indirect=True)
@pytest.mark.only_ours("what it took from a list and did not start is lost when it ends")
def test_what_was_taken_from_a_list_survives_its_worker(own_taskiq: Site):
    worker = own_taskiq.worker(INTEROP_CONCURRENCY=1)
    tasks = [own_taskiq.send("sleep", 0.2) for _ in range(6)]
    own_taskiq.result(tasks[0])
    worker.process.kill()
    own_taskiq.worker()
    for task in tasks:
        assert own_taskiq.result(task, HANDING_OVER).return_value == 0.2
