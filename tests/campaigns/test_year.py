"""The campaign of a year of days in its short mode."""

from tests.campaigns.year import SHORT_DAYS, campaign


def test_days_of_appends_and_kills_are_all_there_and_take_no_more_than_one_bulk_write() -> None:
    findings = campaign(SHORT_DAYS, seed=1, runs=1)

    assert findings.faults == []
    assert findings.days == SHORT_DAYS
    assert findings.kills > 3
    assert findings.compactions == 5
