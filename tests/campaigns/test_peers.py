"""The comparison with other libraries in its short mode."""

from tests.campaigns.peers import COUNTS, QUESTIONS, campaign, wrong_with_ours


def test_a_store_stands_what_its_peers_do_not() -> None:
    findings = campaign(seed=1, only=["raggedstore", "PyTables EArray", "Zarr 3"])

    assert wrong_with_ours(findings) == []
    assert {question for question, _ in findings.results} == {*QUESTIONS}
    assert all(
        counter.total() == COUNTS[question][0]
        for (question, name), counter in findings.results.items()
        if (question, name) != ("power", "raggedstore")
    )
    flipped = {name: findings.results["flip", name] for name in ("raggedstore", "PyTables EArray")}
    assert flipped["raggedstore"]["error"] > 15
    assert flipped["PyTables EArray"]["wrong"] > 10
