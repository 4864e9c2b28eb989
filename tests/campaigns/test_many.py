"""The campaign of many at once in its short mode."""

from tests.campaigns.many import SHORT, campaign


def test_many_writers_and_readers_lose_double_and_tear_nothing() -> None:
    findings = campaign(*SHORT, seed=1)

    assert findings.faults == []
    assert findings.samples > 50
    for what in ("versions followed", "versions held", "versions read without locks"):
        assert findings.counts[what] > 0
    assert findings.counts["compactions, at most"] > 0 and findings.counts["files removed"] > 0
