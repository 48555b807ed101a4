"""Workflows: groups, chains, chords, and each inside of the others; what follows a success and a failure."""

import pytest
from celery import chain, chord, chunks, group
from celery.exceptions import ChordError, NotRegistered
from celery.result import GroupResult

from celery_site import Site
from machine import PATIENCE, until


def get(result):
    return result.get(timeout=PATIENCE)


def leaves(children) -> set[str]:
    """The ids of tasks, whatever groups they are in."""
    return {leaf for child in children for leaf in (leaves(child) if isinstance(child, GroupResult) else {child.id})}


def members(site: Site, *numbers: int):
    return group([site.sig("add", number, number) for number in numbers], app=site.app)


def test_a_group_answers_in_its_order(site: Site):
    assert get(members(site, 1, 2, 3)()) == [2, 4, 6]


def test_a_group_with_a_failure_says_which(site: Site):
    result = group([site.sig("add", 1, 1), site.sig("fail", "one of two")], app=site.app)()
    with pytest.raises(ValueError, match="one of two"):
        get(result)
    assert get(result[0]) == 2
    assert result[1].state == "FAILURE"


def test_a_chain_hands_each_result_to_the_next_step(site: Site):
    result = chain(site.sig("add", 1, 2), site.sig("chain_double"), site.sig("add", 10), app=site.app)()
    assert get(result) == 16
    assert get(result.parent) == 6
    assert get(result.parent.parent) == 3


def test_a_step_that_is_immutable_takes_no_result(site: Site):
    result = chain(site.sig("add", 1, 2), site.sig("add", 5, 5, immutable=True), app=site.app)()
    assert get(result) == 10


def test_a_large_number_keeps_every_digit_in_a_chain(site: Site):
    steps = [site.sig("echo", 2**64), site.sig("echo", 10**30, immutable=True), site.sig("echo", 10**31)]
    result = chain(*steps, app=site.app)()
    assert get(result)["args"] == [{"args": [10**30], "kwargs": {}}, 10**31]
    assert get(result.parent.parent)["args"] == [2**64]


def test_the_children_of_a_chain_are_known(site: Site):
    result = chain(site.sig("add", 1, 2), site.sig("chain_double"), app=site.app)()
    get(result)
    first = site.app.AsyncResult(result.parent.id)
    assert [child.id for child in first.children] == [result.id]


def test_a_chain_ends_with_the_error_of_its_step(site: Site):
    result = chain(site.sig("fail", "step two of three"), site.sig("chain_double"), site.sig("add", 1), app=site.app)()
    with pytest.raises(ValueError, match="step two of three"):
        get(result)
    assert result.state == "FAILURE"
    until(lambda: result.parent.state == "FAILURE", "the step between to be answered")


def test_a_chain_of_twenty_steps_comes_to_its_end(site: Site):
    steps = [site.sig("add", 0, 1)] + [site.sig("add", 1) for _ in range(19)]
    assert get(chain(*steps, app=site.app)()) == 20


def test_a_chord_gets_all_results_in_order(site: Site):
    assert get(chord(members(site, 1, 2, 3), app=site.app)(site.sig("sum_list"))) == 12
    assert get(chord(members(site, 3, 2, 1), app=site.app)(site.sig("echo")))["args"] == [[6, 4, 2]]


def test_a_chord_of_one_part_is_a_chord(site: Site):
    assert get(chord([site.sig("add", 20, 1)], app=site.app)(site.sig("sum_list"))) == 21


def test_a_chord_of_thirty_parts_runs_its_body_once(site: Site):
    result = chord(members(site, *range(30)), app=site.app)(site.sig("echo"))
    assert get(result) == {"args": [[number * 2 for number in range(30)]], "kwargs": {}}


def test_a_chord_whose_body_is_immutable_gets_nothing(site: Site):
    assert get(chord(members(site, 1, 2), app=site.app)(site.sig("add", 1, 1, immutable=True))) == 2


def test_a_chord_with_a_failed_part_is_a_chord_error(site: Site):
    result = chord([site.sig("add", 1, 1), site.sig("fail", "a part")], app=site.app)(site.sig("sum_list"))
    # Asked by its id: with its parents, the client would raise their error as soon as it hears of it.
    with pytest.raises(ChordError, match=r"raised ValueError\('a part'\)"):
        get(site.app.AsyncResult(result.id))


def test_a_group_followed_by_a_task_is_a_chord(site: Site):
    assert get((members(site, 1, 2) | site.sig("sum_list")).apply_async()) == 6


def test_a_group_in_a_chain_gets_the_result_before_it(site: Site):
    flow = site.sig("add", 1, 1) | group([site.sig("add", 10), site.sig("add", 20)], app=site.app)
    assert get(flow.apply_async()) == [12, 22]


def test_a_group_in_the_middle_of_a_chain_is_a_chord(site: Site):
    flow = chain(
        site.sig("add", 1, 1),
        group([site.sig("add", 10), site.sig("add", 20)], app=site.app),
        site.sig("sum_list"),
        site.sig("chain_double"),
        app=site.app,
    )
    assert get(flow()) == 68


def test_a_chord_in_a_chain_goes_on_with_its_body(site: Site):
    inner = chord([site.sig("add", 1), site.sig("add", 2)], site.sig("sum_list"), app=site.app)
    flow = chain(site.sig("add", 5, 5), inner, site.sig("add", 100), app=site.app)
    assert get(flow()) == 123


def test_a_chain_in_a_group_counts_with_its_last_step(site: Site):
    flow = group([chain(site.sig("add", 1, 1), site.sig("chain_double"), app=site.app), site.sig("add", 5, 5)])
    assert get(flow.apply_async()) == [4, 10]


def test_a_chain_in_a_chord_counts_with_its_last_step(site: Site):
    part = chain(site.sig("add", 1, 1), site.sig("chain_double"), app=site.app)
    result = chord([part, site.sig("add", 5, 5)], app=site.app)(site.sig("echo"))
    assert get(result)["args"] == [[4, 10]]


def test_chords_in_a_chord_hand_their_bodies_on(site: Site):
    def inner(number: int):
        return chord(members(site, number, number), site.sig("sum_list"), app=site.app)

    result = chord([inner(1), inner(2)], app=site.app)(site.sig("sum_list"))
    assert get(result) == 12


def test_a_chord_in_a_group_is_one_of_its_results(site: Site):
    inner = chord(members(site, 1, 2), site.sig("sum_list"), app=site.app)
    assert get(group([inner, site.sig("add", 1, 1)], app=site.app)()) == [6, 2]


def test_two_groups_in_a_chain_follow_each_other(site: Site):
    flow = chain(
        members(site, 1, 2),
        site.sig("sum_list"),
        group([site.sig("add", 1), site.sig("add", 2)], app=site.app),
        site.sig("sum_list"),
        app=site.app,
    )
    assert get(flow()) == 15


def test_a_callback_runs_with_the_result(site: Site):
    callback = site.sig("echo", "linked")
    callback.freeze()
    result = site.send("add", 2, 3, link=callback)
    assert get(result) == 5
    assert get(site.app.AsyncResult(callback.id)) == {"args": [5, "linked"], "kwargs": {}}


def test_two_callbacks_both_run_and_are_children(site: Site):
    callbacks = [site.sig("echo", "first"), site.sig("echo", "second")]
    for callback in callbacks:
        callback.freeze()
    result = site.send("add", 2, 3, link=callbacks)
    assert get(result) == 5
    answers = [get(site.app.AsyncResult(callback.id))["args"] for callback in callbacks]
    assert answers == [[5, "first"], [5, "second"]]
    # Celery wraps them in a group; a child for each is as good.
    assert leaves(result.children) == {callback.id for callback in callbacks}


def test_a_callback_does_not_run_after_a_failure(site: Site):
    callback = site.sig("echo", "never")
    callback.freeze()
    result = site.send("fail", "no callback", link=callback)
    with pytest.raises(ValueError):
        get(result)
    assert site.call("add", 1, 1) == 2
    assert site.app.AsyncResult(callback.id).state == "PENDING"


def test_an_error_callback_gets_the_id_of_the_failed_task(site: Site):
    # A name that the worker does not know is sent as a message with one argument: so the queue shows what was sent.
    errback = site.sig("echo", "errback", queue=f"{site.queue}-errors")
    errback["task"] = "elsewhere.errback"
    errback.freeze()
    result = site.send("fail", "call back", link_error=errback)
    with pytest.raises(ValueError):
        get(result)
    with site.app.connection_for_read() as connection:
        queue = connection.SimpleQueue(f"{site.queue}-errors")
        message = queue.get(timeout=PATIENCE)
        message.ack()
        args, kwargs, _ = message.payload
        queue.close()
    assert args == [result.id, "errback"]
    assert message.headers["task"] == "elsewhere.errback"
    assert message.headers["parent_id"] == result.id


def test_an_error_callback_does_not_run_after_a_success(site: Site):
    errback = site.sig("echo", "never")
    errback.freeze()
    assert get(site.send("add", 1, 2, link_error=errback)) == 3
    assert site.call("add", 1, 1) == 2
    assert site.app.AsyncResult(errback.id).state == "PENDING"


def test_steps_for_other_workers_go_to_their_queue(site: Site):
    other = f"{site.queue}-other"
    flow = chain(site.sig("add", 1, 2), site.sig("chain_double", queue=other), app=site.app)
    result = flow()
    assert get(result.parent) == 3
    with site.app.connection_for_read() as connection:
        queue = connection.SimpleQueue(other)
        message = queue.get(timeout=PATIENCE)
        message.ack()
        queue.close()
    assert message.payload[0] == [3]
    assert message.headers["id"] == result.id
    assert message.headers["parent_id"] == result.parent.id
    assert message.headers["root_id"] == result.parent.id


def test_a_map_runs_its_task_for_each_item(site: Site):
    sums = site.app.signature("celery.map", kwargs={"task": dict(site.sig("sum_list")), "it": [[1, 2], [3]]})
    assert get(sums.apply_async()) == [3, 3]
    adds = site.app.signature("celery.starmap", kwargs={"task": dict(site.sig("add")), "it": [[1, 2], [3, 4]]})
    assert get(adds.apply_async()) == [3, 7]


def test_chunks_are_a_group_of_maps(site: Site):
    result = chunks(site.sig("add"), [(number, number) for number in range(5)], 2, app=site.app).group()()
    assert get(result) == [[0, 2], [4, 6], [8]]


def test_the_first_item_that_fails_is_the_failure_of_its_map(site: Site):
    fails = site.app.signature("celery.map", kwargs={"task": dict(site.sig("fail")), "it": ["one", "two"]})
    with pytest.raises(ValueError, match="one"):
        get(fails.apply_async())
    unfit = site.app.signature("celery.starmap", kwargs={"task": dict(site.sig("add")), "it": [[1, 2], [3]]})
    with pytest.raises(TypeError):
        get(unfit.apply_async())
    nobody = {**site.sig("add"), "task": "nobody.knows"}
    unknown = site.app.signature("celery.map", kwargs={"task": nobody, "it": [1]})
    with pytest.raises(NotRegistered, match="nobody.knows"):
        get(unknown.apply_async())


def test_a_joined_group_can_be_saved_and_restored(site: Site):
    result = members(site, 1, 2)()
    result.save()
    restored = result.__class__.restore(result.id, app=site.app)
    assert get(restored) == [2, 4]
