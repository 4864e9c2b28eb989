"""The campaign of forks in its short mode."""

from tests.campaigns.forks import METHODS, SHORT_FORKS, campaign


def test_children_of_a_process_at_work_neither_hang_nor_read_anything_wrong() -> None:
    findings = campaign(SHORT_FORKS, seed=1)

    assert findings.faults == []
    assert findings.forks == SHORT_FORKS
    assert findings.locked.total() > 0
    assert findings.commits > 0
    assert all(findings.batches[method] > 10 for method in METHODS)
