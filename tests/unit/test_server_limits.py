"""The page on limits is what its command makes of what is kept, and the simulation keeps to what is known."""

from __future__ import annotations

import re
from statistics import mean

import pytest

from benchmarks.bench_costs import read_costs
from benchmarks.bench_limits import CHART, PAGE, RATE, WAIT, Limits
from benchmarks.simulation import TO_END, TO_START, Cost, SetUp, backlog_rate, dispatch_waits

#: An item that takes an API process 100 ms.
ITEM = Cost(api=0.1)
NOTHING = Cost(api=0.0)


@pytest.fixture(scope="module")
def limits() -> Limits:
    return Limits(read_costs())


def test_page_and_chart_are_what_the_command_makes_of_what_is_kept(limits: Limits) -> None:
    page = PAGE.read_text()

    assert limits.page(page) == page
    assert limits.chart() == CHART.read_text()


def test_model_is_as_near_to_each_point_that_was_measured_as_the_page_says(limits: Limits) -> None:
    said = re.search(r"Computed rates are off by up to (\d+) %, waits by up to (\d+) %", PAGE.read_text())

    assert said
    for unit, percent, bound in ((RATE, said[1], 25), (WAIT, said[2], 100)):
        errors = [100 * abs(check.error) for check in limits.checks if check.unit == unit]
        assert len(errors) >= 4
        assert max(errors) <= int(percent) + 0.5 <= bound


def test_requests_of_an_item_are_all_of_its_cost() -> None:
    assert sum((*TO_START, *TO_END)) == pytest.approx(1.0)


def test_one_client_gets_an_item_done_in_its_cost_and_its_pauses() -> None:
    cost = Cost(api=0.05, database=0.02, client=0.02, pause=0.01)

    assert backlog_rate(SetUp(), cost, clients=1, slots=1) == pytest.approx(10.0, rel=0.02)


def test_api_process_is_the_limit_of_many_clients_and_a_second_one_doubles_it() -> None:
    cost = Cost(api=0.1, database=0.02)

    assert backlog_rate(SetUp(), cost, clients=6, slots=4) == pytest.approx(10.0, rel=0.05)
    assert backlog_rate(SetUp(processes=2), cost, clients=6, slots=4) == pytest.approx(20.0, rel=0.05)


def test_writes_of_one_client_go_one_at_a_time() -> None:
    rate = backlog_rate(SetUp(processes=1), Cost(api=0.05, pause=0.05), clients=1, slots=8)

    # Half of the pause passes before a request's turn.
    assert rate == pytest.approx(1 / 0.075, rel=0.05)


def test_cores_are_the_limit_of_a_machine_with_fewer_than_work_on_it() -> None:
    cost = Cost(api=0.1, client=0.1)

    assert backlog_rate(SetUp(processes=2, cores=2), cost, clients=8, slots=4) == pytest.approx(10.0, rel=0.03)


def test_items_wait_as_long_as_in_a_queue_of_one_server() -> None:
    def wait(rate: float) -> float:
        return mean(dispatch_waits(SetUp(), ITEM, add=NOTHING, others=NOTHING, rate=rate, agents=8))

    alone = ITEM.api * sum(TO_START)
    assert wait(0.05) == pytest.approx(alone, rel=0.1)
    assert alone < wait(5.0) < 4 * alone
    assert wait(15.0) > 4.0


def test_polls_of_the_other_agents_are_in_the_way_of_the_items_that_come_next() -> None:
    def wait(others: Cost) -> float:
        return mean(dispatch_waits(SetUp(), ITEM, add=NOTHING, others=others, rate=3.0, agents=4))

    assert wait(Cost(api=0.15)) > 1.3 * wait(NOTHING)


def test_same_call_gives_the_same_figures() -> None:
    def waits() -> object:
        return dispatch_waits(SetUp(cores=2), ITEM, add=ITEM, others=ITEM, rate=2.0, agents=3)

    assert waits() == waits()
