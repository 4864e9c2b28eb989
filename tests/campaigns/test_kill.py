"""The kill campaign in its short mode."""

from tests.campaigns.kill import campaign


def test_a_killed_writer_loses_nothing_that_it_committed() -> None:
    findings = campaign(kills=12, seed=1)

    assert findings.faults == []
    assert findings.kills == 12
    assert findings.commits > 12
