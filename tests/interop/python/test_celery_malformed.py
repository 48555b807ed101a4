"""Messages that make no sense: none stops the worker, and what follows them runs.

The peer from Python lives through some of them; those that end its process are for our worker only.
"""

import json
import uuid

import pytest

from celery_site import Site, base64_text, element, element_properties, task_headers
from machine import PATIENCE

HEADERS = task_headers("interop.add", "to be replaced")
BODY = json.dumps([[1, 2], {}, {}])
ON_REDIS = pytest.mark.parametrize("site", ["redis"], indirect=True)
KILLS = pytest.mark.only_ours("its process dies of this message, which comes again")


def headers(**changes) -> dict:
    return {**HEADERS, "id": str(uuid.uuid4()), **changes}


def expect_life(site: Site) -> None:
    """What is sent after a message that makes no sense is answered by the same process."""
    results = [site.send("add", number, 1) for number in range(4)]
    assert [result.get(timeout=PATIENCE) for result in results] == [1, 2, 3, 4]
    assert site.shared.process.is_alive()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"this is not json", id="not_json"),
        pytest.param(b"\xff\xfe\xfd", id="not_utf8"),
        pytest.param(BODY[:-3].encode(), id="truncated"),
        pytest.param(b"", id="empty", marks=KILLS),
        pytest.param(b"[]", id="no_parts", marks=KILLS),
        pytest.param(b"[[1, 2], {}]", id="two_parts", marks=KILLS),
        pytest.param(b"[[1, 2], {}, {}, {}]", id="four_parts", marks=KILLS),
        pytest.param(b'{"args": [1, 2]}', id="object"),
        pytest.param(b"7", id="number", marks=KILLS),
        pytest.param(b"[1, 2, 3]", id="parts_of_other_types"),
        pytest.param(b"[" * 20_000 + b"]" * 20_000, id="too_deep"),
    ],
)
def test_a_worker_lives_on_after_a_body_that_is(site: Site, body: bytes):
    site.publish(body, headers())
    expect_life(site)


@pytest.mark.parametrize(
    "content_type", ["application/x-python-serialize", "application/x-unknown", "text/plain", "not a content type"]
)
def test_a_worker_refuses_a_body_of_content_type(site: Site, content_type: str):
    # A pickle that would call a function, were it read.
    site.publish(b"cos\nabort\n(tR.", headers(), content_type=content_type, content_encoding="binary")
    expect_life(site)


@pytest.mark.parametrize("name, value", [("eta", "tomorrow"), ("expires", "never"), ("eta", 17)])
def test_a_worker_lives_on_after_a_time_that_is_none(site: Site, name: str, value):
    site.publish(BODY, headers(**{name: value}))
    expect_life(site)


@pytest.mark.parametrize(
    "name, value",
    [
        pytest.param("task", "", id="task_empty"),
        pytest.param("task", 5, id="task_number"),
        pytest.param("id", 5, id="id_number"),
        pytest.param("id", "x" * 100_000, id="id_huge"),
        pytest.param("retries", "many", id="retries_text"),
        pytest.param("timelimit", "soon", id="timelimit_text", marks=KILLS),
        pytest.param("compression", "application/x-gzip", id="compression_of_what_is_not_compressed"),
        pytest.param("compression", "application/x-none", id="compression_unknown"),
    ],
)
def test_a_worker_lives_on_after_a_header_that_is_no(site: Site, name: str, value):
    site.publish(BODY, headers(**{name: value}))
    expect_life(site)


def test_a_worker_lives_on_after_a_message_without_headers(site: Site):
    site.publish(json.dumps({"neither": "task nor id"}), {})
    expect_life(site)


def test_what_makes_no_sense_is_not_delivered_again(site: Site):
    site.publish(b"this is not json", headers())
    expect_life(site)
    if site.broker == "redis":
        assert site.redis.llen(site.queue) == 0
    else:
        with site.app.connection_for_read() as connection, connection.channel() as channel:
            assert channel.queue_declare(site.queue, passive=True).message_count == 0


@pytest.mark.only_ours("an unknown task is dropped after its answer, and what cannot be read has no trace")
def test_what_makes_no_sense_becomes_a_dead_letter(site: Site):
    before = site.shared.said().count("dead letter")
    site.publish(b"this is not json", headers())
    expect_life(site)
    assert site.shared.said().count("dead letter") > before


ELEMENTS = [
    pytest.param("not json", id="not_json", marks=KILLS),
    pytest.param("", id="empty", marks=KILLS),
    pytest.param("[]", id="array", marks=KILLS),
    pytest.param("7", id="number", marks=KILLS),
    pytest.param("null", id="null", marks=KILLS),
    pytest.param(b"\xff\xfe", id="bytes", marks=KILLS),
    pytest.param(("no_body",), id="no_body", marks=KILLS),
    pytest.param(("not_base64",), id="not_base64", marks=KILLS),
    pytest.param(("no_properties",), id="no_properties"),
    pytest.param(("no_headers",), id="no_headers"),
    pytest.param(("no_delivery_tag",), id="no_delivery_tag"),
    pytest.param(("no_delivery_info",), id="no_delivery_info"),
]


@ON_REDIS
@pytest.mark.parametrize("broken", ELEMENTS)
def test_a_worker_lives_on_after_a_list_element_that_is(site: Site, broken):
    site.push_raw(broken if isinstance(broken, str | bytes) else broken_element(site.queue, broken[0]))
    expect_life(site)


def broken_element(queue: str, how: str) -> str:
    properties = element_properties(queue)
    body, of_headers = base64_text(BODY), headers()
    if how == "no_body":
        body = None
    elif how == "not_base64":
        body = "%%%"
    elif how == "no_properties":
        properties = None
    elif how == "no_headers":
        of_headers = None
    else:
        del properties[how.removeprefix("no_")]
    return json.dumps(element(body, of_headers, properties))


@ON_REDIS
def test_an_element_whose_body_is_plain_text_runs(site: Site):
    properties = element_properties(site.queue)
    del properties["body_encoding"]
    id = str(uuid.uuid4())
    site.push_raw(json.dumps(element(BODY, headers(id=id), properties)))
    assert site.app.AsyncResult(id).get(timeout=PATIENCE) == 3
