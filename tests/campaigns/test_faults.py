"""The campaigns of failing calls and full disks in their short modes."""

import pytest

from tests.campaigns import full
from tests.campaigns.faults import SHORT_CASES, campaign


def test_a_call_that_fails_harms_no_store() -> None:
    findings = campaign(seed=1, limit=SHORT_CASES)

    assert findings.faults == []
    assert findings.cases == len(findings.calls) * SHORT_CASES


def test_python_s_own_calls_are_met_without_a_compiler_too() -> None:
    findings = campaign(seed=2, limit=10, only=["append", "vacuum"], in_python=True)

    assert findings.faults == []
    assert findings.cases == 20
    assert all(counter["refused"] for counter in findings.results.values())


@pytest.mark.parametrize("kind", ["disk", "limit"])
def test_a_full_disk_refuses_and_changes_nothing(kind: str) -> None:
    findings = full.campaign(kind, rounds=1, seed=1)

    if findings.skipped:
        pytest.skip(findings.skipped)
    assert findings.faults == []
    assert findings.commits and findings.refused
