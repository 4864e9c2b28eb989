"""The campaigns of failing calls and full disks in their short modes."""

import random
from collections import Counter

import pytest

from tests.campaigns import full
from tests.campaigns.faults import EACH, FEW, SHORT_CASES, campaign, planned
from tests.campaigns.shim import FAULTS, SHORT


def test_a_call_that_fails_harms_no_store() -> None:
    findings = campaign(seed=1, limit=SHORT_CASES)

    assert findings.faults == []
    assert findings.cases == len(findings.calls) * SHORT_CASES


def test_python_s_own_calls_are_met_without_a_compiler_too() -> None:
    findings = campaign(seed=2, limit=10, only=["append", "vacuum"], in_python=True)

    assert findings.faults == []
    assert findings.cases == 20
    assert all(counter["refused"] for counter in findings.results.values())


def test_of_every_site_the_first_call_the_last_and_one_between_fail_in_every_way() -> None:
    sites = ["once", *["often"] * 9, "twice", "often", "twice"]
    calls = ["write x" if site == "often" else "open x" for site in sites]
    cases = planned(calls, sites, list(FAULTS), None, random.Random(1))

    numbers = {"once": [1], "twice": [11, 13], "often": [2, 12]}
    for site, some in numbers.items():
        ways = FAULTS.keys() - {SHORT} if site != "often" else FAULTS.keys()
        assert {(number, fault) for number in some for fault in ways} <= {*cases}
    assert len(cases) == len({*cases}) == 3 * (len(FAULTS) - 1) + EACH * len(FAULTS)
    few = planned(calls, sites, list(FAULTS), None, random.Random(1), few=True)
    assert Counter(sites[number - 1] for number, _ in few) == dict.fromkeys(numbers, FEW)


@pytest.mark.parametrize("kind", ["disk", "limit"])
def test_a_full_disk_refuses_and_changes_nothing(kind: str) -> None:
    findings = full.campaign(kind, rounds=1, seed=1)

    if findings.skipped:
        pytest.skip(findings.skipped)
    assert findings.faults == []
    assert findings.commits and findings.refused
