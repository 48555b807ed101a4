"""Fixtures: a shared site for each broker, sites of a test's own, and what is shown when a test fails."""

import pytest

import machine
from celery_site import Site

BROKERS = ["redis", "amqp"]


def pytest_collection_modifyitems(items):
    for item in items:
        mark = item.get_closest_marker("only_ours")
        if mark and machine.PEER == "python":
            item.add_marker(pytest.mark.skip(reason=f"a Python worker: {mark.args[0]}"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        for process in machine.RUNNING:
            tail = "\n".join(process.said().splitlines()[-20:])
            report.sections.append((f"what {process.name} said (its end)", tail))


def pytest_sessionfinish():
    machine.kill_all()


@pytest.fixture(scope="session", params=BROKERS)
def site(request):
    """A site with one worker, for tests that leave both as they were."""
    site = Site(request.param)
    site.shared = site.worker()
    yield site
    site.close()


@pytest.fixture(params=BROKERS)
def own_site(request):
    """A site without a worker, for a test that starts its own."""
    site = Site(request.param)
    yield site
    site.close()


@pytest.fixture(scope="module", params=BROKERS)
def controlled(request):
    """A site for the tests of a module that change their worker: two slots, events from the start."""
    site = Site(request.param)
    site.shared = site.worker(INTEROP_CONCURRENCY=2, INTEROP_EVENTS=1, INTEROP_PREFETCH=4)
    yield site
    site.close()
