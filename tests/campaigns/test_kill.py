"""The kill campaign in its short mode."""

from tests.campaigns.kill import KILLED, campaign
from tests.campaigns.operations import LONG


def test_a_killed_operation_loses_nothing_and_leaves_nothing_that_vacuum_does_not_remove() -> None:
    tallies = [*campaign(kills=39, seed=1)]

    assert [fault for tally in tallies for fault in tally.faults] == []
    assert {tally.name for tally in tallies} == KILLED.keys() - LONG
    assert all(tally.kills == 3 for tally in tallies)
    assert sum(tally.stages["under way"] for tally in tallies) > 5
    assert sum(tally.strays for tally in tallies) > 0
