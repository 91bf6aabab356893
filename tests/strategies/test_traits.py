"""What strategies may say of themselves, and what holds of those that say nothing."""

import dataclasses

import pytest

from deft_jax.capacity import Capacity
from deft_jax.strategies.checked_strategy import checked
from deft_jax.strategies.parallel import BestOfN
from deft_jax.strategies.traits import footprint_of, merges_chains, shares_pages
from examples.beam_search import BeamSearch


def test_a_strategy_that_says_nothing_gets_a_branch_for_every_node():
    needs = footprint_of(BestOfN(5))
    assert (needs.rows, needs.nodes) == (5, 6)
    assert needs.pages(100, 16) == 5 * 7
    assert not merges_chains(BestOfN(5).planner)
    assert not shares_pages(BestOfN(5).planner)


def test_a_strategy_may_say_how_many_pages_it_takes():
    needs = footprint_of(BeamSearch(width=8, length=512))
    assert needs.pages(512, 64) == 64
    assert needs.pages(10, 64) == 2
    assert merges_chains(BeamSearch(width=2, length=3))


@pytest.mark.parametrize("n", [1, 5, 8])
def test_a_derived_footprint_reserves_what_branches_take(n):
    needs = footprint_of(BestOfN(n))
    plain = Capacity.for_requests([30, 90], 256, needs.rows, needs.nodes)
    told = Capacity.for_requests(
        [30, 90], 256, needs.rows, needs.nodes, pages=needs.pages(256, 64)
    )
    assert plain == told


def test_what_a_checked_strategy_says_is_what_its_own_one_says():
    beam = dataclasses.replace(BeamSearch(width=3, length=9), shares_pages=False)
    watched = checked(beam)
    assert footprint_of(watched).pages(9, 4) == footprint_of(beam).pages(9, 4)
    assert merges_chains(watched.planner) and not shares_pages(watched.planner)
