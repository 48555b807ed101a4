"""Workers as processes: queues, priorities, death and handing over, results elsewhere."""

import threading
import time

import pytest
from celery import chain
from celery.exceptions import TaskRevokedError

import machine
from celery_site import Site, priority_queue
from machine import PATIENCE, unique, until

# Long enough that a killed worker was in the middle of it.
LONG = 3
VISIBILITY = 2
# Until a lease of ours, or the visibility of a message, is over.
HANDING_OVER = 60.0

ON_REDIS = pytest.mark.parametrize("own_site", ["redis"], indirect=True)
ON_RABBITMQ = pytest.mark.parametrize("own_site", ["amqp"], indirect=True)


def test_a_worker_consumes_all_of_its_queues(own_site: Site):
    other = f"{own_site.queue}-other"
    own_site.worker(INTEROP_QUEUES=f"{own_site.queue},{other}")
    assert own_site.call("add", 1, 2) == 3
    assert own_site.call("add", 3, 4, queue=other) == 7


@pytest.mark.only_ours("it starts without asking the others, to be there a second sooner")
def test_a_worker_that_starts_hears_from_one_of_celery_what_was_revoked(own_site: Site):
    knows = own_site.worker(machine.reference_command("celery"))
    id = unique("revoked")
    own_site.control(knows, "revoke", task_id=id)
    ours = own_site.worker()

    def revoked() -> list:
        return (own_site.inspect(ours).revoked() or {}).get(ours.hostname, [])

    until(lambda: id in revoked(), "it to be told")
    knows.stop()
    # What the first has stored when it was told.
    own_site.redis.delete(f"celery-task-meta-{id}")
    with pytest.raises(TaskRevokedError):
        own_site.send("add", 1, 1, task_id=id).get(timeout=PATIENCE)


def test_what_was_sent_before_the_worker_started_runs(own_site: Site):
    # On RabbitMQ a queue is there when its producer declares it, which a Celery client does.
    results = [own_site.send("add", number, 0) for number in range(20)]
    own_site.worker()
    assert [result.get(timeout=PATIENCE) for result in results] == list(range(20))


def test_a_more_urgent_task_is_served_first(own_site: Site):
    if own_site.broker == "amqp":
        own_site.app.conf.task_queues = [priority_queue(own_site.queue, 9)]
    own_site.worker(INTEROP_CONCURRENCY=1, INTEROP_PREFETCH=1, INTEROP_MAX_PRIORITY=9)
    running = own_site.send("sleep", 1)
    own_site.wait_for_state(running, "STARTED")
    first, last = (0, 9) if own_site.broker == "redis" else (9, 0)
    order = []
    results = [
        own_site.send("add", "last", "", priority=last),
        own_site.send("add", "middle", "", priority=6 if own_site.broker == "redis" else 5),
        own_site.send("add", "first", "", priority=first),
    ]
    for result in results:
        result.get(timeout=PATIENCE)
        order.append((result.date_done, result.result))
    assert [word for _, word in sorted(order)] == ["first", "middle", "last"]


def test_a_task_whose_worker_is_killed_is_finished_by_another(own_site: Site):
    first = own_site.worker(INTEROP_ACKS_LATE=1, INTEROP_VISIBILITY=VISIBILITY)
    result = own_site.send("sleep", LONG)
    own_site.wait_for_state(result, "STARTED")
    first.kill()
    if own_site.broker == "redis":
        # A worker from Python looks once, as it starts, for what others have had for too long.
        until(lambda: not is_visible(own_site), "the message to be given up")
    own_site.worker(INTEROP_ACKS_LATE=1, INTEROP_VISIBILITY=VISIBILITY)
    assert result.get(timeout=HANDING_OVER) == LONG


def is_visible(site: Site) -> bool:
    """Whether what a dead worker took is still its own by kombu's rule. Another transport's is not in this index."""
    taken = site.redis.zrange("unacked_index", 0, -1, withscores=True)
    return any(time.time() - score < VISIBILITY + 0.1 for _, score in taken)


def test_of_many_tasks_none_is_lost_when_a_worker_is_killed(own_site: Site):
    settings = {"INTEROP_ACKS_LATE": 1, "INTEROP_VISIBILITY": VISIBILITY, "INTEROP_CONCURRENCY": 2}
    first = own_site.worker(**settings)
    results = [own_site.send("sleep", 0.1) for _ in range(30)]
    results[5].get(timeout=PATIENCE)
    first.kill()
    if own_site.broker == "redis":
        until(lambda: not is_visible(own_site), "the messages to be given up")
    own_site.worker(**settings)
    for result in results:
        assert result.get(timeout=HANDING_OVER) == 0.1


def test_a_worker_that_is_asked_to_end_finishes_what_it_runs(own_site: Site):
    worker = own_site.worker(INTEROP_CONCURRENCY=1, INTEROP_PREFETCH=1)
    running = own_site.send("sleep", 1)
    own_site.wait_for_state(running, "STARTED")
    waiting = [own_site.send("add", number, 0) for number in range(5)]
    assert worker.stop() == 0
    assert running.get(timeout=PATIENCE) == 1
    own_site.worker()
    assert [result.get(timeout=PATIENCE) for result in waiting] == list(range(5))


def test_two_workers_share_the_work(own_site: Site):
    workers = [own_site.worker(INTEROP_CONCURRENCY=1, INTEROP_PREFETCH=1) for _ in range(2)]
    results = [own_site.send("sleep", 0.3) for _ in range(8)]
    assert [result.get(timeout=PATIENCE) for result in results] == [0.3] * 8
    counts = [own_site.inspect(worker).stats()[worker.hostname]["total"].get("interop.sleep", 0) for worker in workers]
    assert sum(counts) == 8
    assert min(counts) >= 2


def test_the_extended_result_says_what_was_called(own_site: Site):
    worker = own_site.worker(INTEROP_RESULT_EXTENDED=1)
    result = own_site.send("add", 1, kwargs={"y": 2})
    assert result.get(timeout=PATIENCE) == 3
    assert result.name == "interop.add"
    assert result.args == [1]
    assert result.kwargs == {"y": 2}
    assert result.worker == worker.hostname
    assert result.queue == own_site.queue
    assert result.retries == 0


@ON_RABBITMQ
def test_results_come_as_replies(own_site: Site):
    own_site.worker(INTEROP_RESULT="rpc://")
    own_site.app = own_site.client(backend="rpc://")
    assert own_site.call("add", 1, 2) == 3
    assert own_site.call("flaky", "rpc", 1) == {"key": "rpc", "attempts": 2}
    with pytest.raises(ValueError, match="over rpc"):
        own_site.call("fail", "over rpc")
    results = [own_site.send("add", number, number) for number in range(20)]
    assert [result.get(timeout=PATIENCE) for result in results] == [2 * number for number in range(20)]
    flow = chain(own_site.sig("add", 1, 2), own_site.sig("chain_double"), app=own_site.app)()
    assert flow.get(timeout=PATIENCE) == 6


@ON_RABBITMQ
def test_replies_reach_the_producer_that_asked(own_site: Site):
    own_site.worker(INTEROP_RESULT="rpc://")
    answers = {}

    def produce(name: str) -> None:
        app = own_site.client(backend="rpc://")
        answers[name] = app.send_task("interop.echo", args=(name,)).get(timeout=PATIENCE)["args"]

    producers = [threading.Thread(target=produce, args=(name,)) for name in ("one", "two", "three")]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join(PATIENCE)
    assert answers == {"one": ["one"], "two": ["two"], "three": ["three"]}


@ON_REDIS
def test_keys_may_have_a_prefix(own_site: Site):
    prefix = "team-a:"
    own_site.app = own_site.client(
        broker_transport_options={"global_keyprefix": prefix},
        result_backend_transport_options={"global_keyprefix": prefix},
    )
    own_site.worker(INTEROP_KEYPREFIX=prefix)
    assert own_site.call("add", 1, 2) == 3
    assert own_site.call("flaky", "prefixed", 1)["attempts"] == 2
    keys = {key.decode() for key in own_site.redis.keys("*")}
    assert f"{prefix}_kombu.binding.{own_site.queue}" in keys
    foreign = {key for key in keys if "celery" in key or "kombu" in key}
    assert all(key.startswith(prefix) for key in foreign), foreign


@ON_RABBITMQ
def test_a_quorum_queue_is_consumed(own_site: Site):
    from kombu import Exchange, Queue

    queue = Queue(
        own_site.queue, Exchange(own_site.queue), own_site.queue, queue_arguments={"x-queue-type": "quorum"}
    )
    own_site.app.conf.task_queues = [queue]
    own_site.worker(INTEROP_QUORUM=1)
    assert [own_site.call("add", number, 1) for number in range(5)] == [1, 2, 3, 4, 5]
    assert own_site.call("flaky", "quorum", 1)["attempts"] == 2


def test_an_early_accepted_task_is_not_run_again(own_site: Site):
    first = own_site.worker(INTEROP_ACKS_LATE=0, INTEROP_VISIBILITY=VISIBILITY)
    result = own_site.send("sleep", LONG)
    own_site.wait_for_state(result, "STARTED")
    # It is accepted when it starts; its state may be seen a moment before.
    until(lambda: is_accepted(own_site), "the message to be accepted")
    first.kill()
    own_site.worker(INTEROP_ACKS_LATE=0, INTEROP_VISIBILITY=VISIBILITY)
    assert own_site.call("add", 1, 2) == 3
    assert result.state == "STARTED"


def is_accepted(site: Site) -> bool:
    if site.broker == "redis":
        return site.redis.hlen("unacked") == 0 and site.redis.llen(site.queue) == 0
    # What is not acknowledged is not counted by a passive declaration; purge answers what is ready. The broker has no
    # other word for it without its management, so the worker's own word counts.
    return all(info["acknowledged"] for worker in site.workers[:1] for info in active(site, worker))


def active(site: Site, worker) -> list[dict]:
    answers = site.inspect(worker).active() or {}
    tasks = answers.get(worker.hostname, [])
    return tasks or [{"acknowledged": False}]
