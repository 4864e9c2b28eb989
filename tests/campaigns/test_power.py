"""The campaign of power failures in its short mode."""

from tests.campaigns.power import SHORT_CASES, campaign


def test_after_a_loss_of_power_the_last_or_the_new_version_is_there_whole() -> None:
    findings = campaign(seed=1, limit=SHORT_CASES)

    assert findings.faults == []
    assert len(findings.disks) > 5
    assert all(disks > 5 for disks in findings.disks.values())
