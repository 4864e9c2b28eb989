"""The order contract, version 1, in numbers: which samples come when, in which batch, cut where.

Another number here wants another ORDER_VERSION: a run that goes on would go on otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raggedstore as rs
from raggedstore.training import (
    Bucketed,
    Crop,
    Loader,
    Mixture,
    Packed,
    PackedRows,
    Permuted,
    Sequential,
    Shuffled,
    TokenBudget,
    Weighted,
    Windowed,
)
from raggedstore.training.sizes import Sizes
from tests.training.epochs import handed_over
from tests.training.test_orders import outlook

UNITS = {"unit": 4}
WINDOWS = {"block": 1, "windows": 4, "lanes": 2}
PARTS = {"unit": 4, "parts": [UNITS, {"unit": 2}, UNITS]}
LARGE = 2**64 - 1


def stored(path: Path, lengths: list[int], first: int) -> rs.Store:
    """Samples numbered from `first`, whose values are their places."""
    store = rs.create(path, {"x": rs.Field("int64", (None,)), "i": rs.Field("int64")})
    with store.writer() as writer:
        writer.extend({"x": np.arange(n), "i": first + k} for k, n in enumerate(lengths))
    return rs.open(path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[rs.Store]:
    path = tmp_path_factory.mktemp("contract")
    lengths = [[7 * i % 13 for i in range(size)] for size in (16, 4, 3)]
    return [stored(path / str(k), each, 100 * k) for k, each in enumerate(lengths)]


@pytest.fixture(scope="module")
def store(stores: list[rs.Store]) -> rs.Store:
    return stores[0]


@pytest.fixture(scope="module")
def mixture(stores: list[rs.Store]) -> Mixture:
    return Mixture(dict(zip(stores, (5, 2, 1), strict=True)), count=9)


def kept(loader: Loader, geometry: dict[str, Any], epoch: int = 2) -> Loader:
    """`loader` at the beginning of an epoch, with this geometry of its order."""
    state = loader.state_dict() | {"epoch": epoch}
    state["geometry"]["order"] = geometry
    loader.load_state_dict(state)
    return loader


def told(batches: Any) -> str:
    """Batches as text: `7+3` is sample 7 from its step 3 on; `/` is between rows."""
    return "|".join(_told(batch) for batch in batches)


def _told(batch: dict[str, Any]) -> str:
    x, words = batch["x"], []
    rows = x.row.tolist() if isinstance(x, PackedRows) else [0] * len(x)
    values = x.batch if isinstance(x, PackedRows) else x
    for i, steps, row, before in zip(batch["i"], values, rows, [0, *rows], strict=False):
        words += ["/"] * (row - before)
        words.append(f"{i}+{steps[0]}" if steps.any() and steps[0] else str(i))
    return " ".join(words).replace(" / ", "/")


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (3, "10 2 6|8 0 3|11 15 13|12 1 9|14 5 7|4"),
        (Bucketed("x", 2), "2 10|6 8|0 15|3 11|1 9|13 12|4 14|5 7"),
        (Bucketed("x", 2, edges=[4, 9]), "2 6|8 10|0 15|9 11|12 3|5 7|13 4|1 14"),
        (Bucketed("x", 2, quantiles=3), "2 10|6 8|0 15|9 11|1 3|13 12|7|4|14 5"),
        (TokenBudget("x", 20), "10 3|2 0 15 6 8|11|9|1|13 12|4 14|5 7"),
        (TokenBudget("x", 20, multiple_of=4), "2 10|3|0 15 6 8|11|9|1|13 12|7|4 14|5"),
        (TokenBudget("x", 13, padded=False), "10 2 6 8|0 3|11 15|13 12|1|9|14|5|7 4"),
        (Packed("x", 10, rows=2), "6/10 2 8 0|15 1/3 11+10|11 13/12|14 4/9+10 5|9/7"),
        (
            Windowed("x", 9, stride=8, streams=3),
            "10 2 6|8 0 3|11 15 13|11+8 12 1|9 14 5|9+8 7 4|9 7+8 9",
        ),
    ],
)
def test_units_of_a_permutation_make_these_batches(store: rs.Store, rule: Any, wanted: str) -> None:
    assert told(kept(Loader(store, order=Permuted(1), batch=rule), UNITS)) == wanted


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (3, "11 0 9|6 14 15|3 4 8|2 10 7|1 12 5|13"),
        (Bucketed("x", 1), "11|15|3|14|0|6|4|9|5|12|1|7|2|13|8|10"),
        (Bucketed("x", 3), "0 9 11|15 6 14|8 10 12|13 2 4|1 3 5|7"),
        (TokenBudget("x", 20), "9|6 14|0 4|3|11|10 12|15 2 13 8|1 5|7"),
        (Packed("x", 10, rows=2), "11 0/11+10|6 14/15|10/2 1|8 12/7|9 13/9+10 5|3 4"),
        (Windowed("x", 9, streams=3), "11 0 9|11+9 3 9+9|4 6 14|15 8 2|10 7 1|12 7+9 5|13 15 15"),
    ],
)
def test_lanes_of_windows_make_these_batches(store: rs.Store, rule: Any, wanted: str) -> None:
    assert told(kept(Loader(store, order=Shuffled(1), batch=rule), WINDOWS)) == wanted


@pytest.mark.parametrize(
    ("order", "rule", "wanted"),
    [
        (Permuted(LARGE), 3, "2 13 1|3 6 9|11 8 10|0 7 14|15 5 4|12"),
        (Weighted(range(16), 1), 3, "13 13 2|11 11 7|15 15 15|14 10 13|11 1 5|14"),
        (Weighted(range(16), 1), Bucketed("x", 3), "13 13 2|7 11 11|15 10 14|13 15 15|1 14 5|11"),
        (Weighted.balanced([0] * 12 + [1] * 4, 1), 3, "13 13 0|11 11 4|15 15 15|14 9 13|11 0 2|14"),
        (Sequential(), Bucketed("x", 3), "0 2 1|4 3 5|6 8 10|7 9 11|13 15 12|14"),
        (Sequential(), Bucketed("x", 3, edges=[4, 9]), "0 2 4|8 1 3|5 7 9|13 15 6|10 12 14|11"),
        (Sequential(), Packed("x", 9, rows=2, longer="drop"), "0 2 3/1|4 6/5|8 10/12|13 14 15"),
    ],
)
def test_other_orders_and_seeds_make_these_batches(
    store: rs.Store, order: Any, rule: Any, wanted: str
) -> None:
    assert told(kept(Loader(store, order=order, batch=rule), UNITS)) == wanted


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (Bucketed("x", 3, edges=[4, 9]), "5 9 11|13 15 4|12 1 14"),
        (TokenBudget("x", 30), "13 12 1|4 14 5|7 9"),
        (TokenBudget("x", 30, padded=False), "10 2 6 8 0 3|11 15 13 12 1|9 14 5"),
        (Packed("x", 10, rows=3), "10 2 8/0 3/6|12/11+10 15 1/11 13|14/9/9+10 5"),
        (Windowed("x", 6, streams=3), "1 9 14|1+6 9+6 14+6|5 7 4"),
    ],
)
def test_an_epoch_that_drops_what_is_short_ends_with_these(
    store: rs.Store, rule: Any, wanted: str
) -> None:
    loader = Loader(store, order=Permuted(1), batch=rule, drop_last=True)

    assert told(kept(loader, UNITS)).endswith(wanted)


@pytest.mark.parametrize(
    ("even", "wanted"),
    [
        (None, ["0 1|4 13|8 11", "6 10|12 14|2 5", "7 15|9 3"]),
        ("pad", ["0 1|4 13|8 11", "6 10|12 14|2 5", "7 15|9 3|8 11"]),
        ("drop", ["0 1|4 13", "6 10|12 14", "7 15|9 3"]),
    ],
)
def test_three_processes_are_dealt_these(store: rs.Store, even: Any, wanted: list[str]) -> None:
    loaders = [
        Loader(store, order=Permuted(1), batch=2, rank=rank, world_size=3, even=even)
        for rank in range(3)
    ]

    assert [told(handed_over(loader, 2)) for loader in loaders] == wanted
    assert [told(loader) for loader in loaders] == wanted


def test_two_processes_are_dealt_these_streams(store: rs.Store) -> None:
    options: Any = {"order": Permuted(1), "batch": Windowed("x", 9, streams=2), "world_size": 2}
    loaders = [kept(Loader(store, rank=rank, **options), UNITS) for rank in range(2)]

    assert [told(loader) for loader in loaders] == [
        "10 2|0 3|13 12|9 14|9+9 4",
        "6 8|11 15|11+9 1|5 7|9 7+9",
    ]


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, "0 100 1 6 202 10 101 7 15|4 103 13 12 200 14 102 9 3|8 102 11 2 201 5 103 10 7"),
        (
            {"staggered": True},
            "0 202 1 100 6 10 7 101 15|4 200 13 103 12 14 9 102 3|8 201 11 102 2 5 10 103 7",
        ),
    ],
)
def test_mixtures_interleave_like_this_from_epoch_to_epoch(
    mixture: Mixture, more: dict[str, Any], wanted: str
) -> None:
    loader = kept(Loader(mixture, order=Permuted(1), batch=9), PARTS | more, 0)

    assert "|".join(told(loader) for _ in range(3)) == wanted


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        (Permuted(1), "201 11|102 8|103 5|2 10|7"),
        (Shuffled(1, window=600), "4 103|200 2|1 11|100 15|3"),
        (Sequential(), "202 12|13 100|14 101|0 15|1"),
    ],
)
def test_batches_of_a_mixture_are_these(mixture: Mixture, order: Any, wanted: str) -> None:
    loader = Loader(mixture, order=order, batch=Bucketed("x", 2))

    assert told(kept(loader, loader.geometry["order"] | {"unit": 4})) == wanted


def test_crops_are_at_these_places() -> None:
    def places(crop: Crop, epoch: int, positions: list[int], turns: list[int] | None) -> list[int]:
        turned = None if turns is None else np.array(turns)
        lengths = np.full(len(positions), 10**5)
        return crop.windows(np.array(positions), lengths, epoch, turned)[0].tolist()

    assert places(Crop("x", 2, 3), 2, [0, 1, 2, 3], None) == [21885, 70532, 21409, 8511]
    assert places(Crop("x", 2, 3), 2, [5, 0, 7, 7], [0, 4, 2, 3]) == [66002, 18310, 51102, 71493]
    assert places(Crop("x", 0, LARGE), LARGE, [0, 1, 2**40], None) == [77734, 28805, 42521]


def test_loaders_crop_at_these_places(store: rs.Store, mixture: Mixture) -> None:
    def cut(samples: Any, order: Any, **options: Any) -> str:
        loader = Loader(samples, order=order, crop=Crop("x", 2, 3), batch=9, **options)
        loader.set_epoch(2)
        return told(loader)

    assert cut(store, Permuted(1), where="x.length > 4") == "5+1 11+9 14+3 1+1 7 3+4 10 12 9"
    assert cut(store, Weighted(range(16), 1, count=9)) == "13 13 2 11+9 11+5 7+7 15 15 15"
    assert cut(mixture, Permuted(1)) == "8+1 201+3 11+7 102 2 5+5 10 103 7+6"


def chance(given: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    # Raw, since NumPy may change what a generator makes of them.
    drawn = int(rng.bit_generator.random_raw()) >> 54
    return {"i": given["i"], "drawn": [*given.get("drawn", []), drawn]}


def test_transforms_of_samples_have_these_numbers(store: rs.Store) -> None:
    def drawn(order: Any, epoch: int = 0, **options: Any) -> list[Any]:
        loader = Loader(store, order=order, batch=3)
        loader.set_epoch(epoch)
        for _ in range(2):
            loader = loader.map(chance, per="sample", seeded=True, **options)
        batch = next(iter(loader))
        return [[int(i), *x.tolist()] for i, x in zip(batch["i"], batch["drawn"], strict=True)]

    assert drawn(Permuted(1)) == [[0, 623, 687], [1, 476, 122], [6, 831, 664]]
    assert drawn(Sequential(), 2, seed=LARGE) == [[0, 940, 1011], [1, 211, 707], [2, 387, 456]]
    assert drawn(Weighted(np.arange(16) == 5, 1)) == [[5, 344, 402], [5, 116, 729], [5, 841, 963]]


@pytest.mark.parametrize(
    ("order", "rule", "wanted"),
    [
        (Permuted(1), 8, [[359, 172], [908, 355]]),
        (Weighted(range(16), 1), 8, [[549, 144], [627, 770]]),
        (Weighted(range(16), 1, count=8), Packed("x", 40, rows=1), [[63, 116]]),
        (
            Sequential(),
            Windowed("x", 11, streams=4),
            [[529, 171], [633, 722], [681, 565], [298, 425], [896, 313]],
        ),
    ],
)
def test_transforms_of_batches_have_these_numbers(
    store: rs.Store, order: Any, rule: Any, wanted: list[list[int]]
) -> None:
    loader = Loader(store, order=order, batch=rule)
    loader = loader.map(chance, seeded=True).map(chance, seeded=True, seed=3)
    loader.set_epoch(2)

    assert [batch["drawn"] for batch in loader] == wanted


@pytest.mark.parametrize(
    ("rule", "unit"),
    [
        (5, 65536),
        (100_000, 65536),
        (Bucketed("x", 5), 4096),
        (Bucketed("x", 300), 8192),
        (Bucketed("x", 9999), 65536),
        (TokenBudget("x", 5), 4096),
        (Packed("x", 5), 16384),
        (Windowed("x", 5), 1024),
        (Windowed("x", 5, streams=600), 2048),
    ],
)
def test_units_have_so_many_samples(store: rs.Store, rule: Any, unit: int) -> None:
    assert Loader(store, order=Permuted(), batch=rule).geometry["order"] == {"unit": unit}


@pytest.mark.parametrize(
    ("order", "seen", "wanted"),
    [
        (Shuffled(), (10**7, 9e3, 9e3, 1, 2**30), (128, 512, 1)),
        (Shuffled(window="32MB"), (10**6, 1e4, 2e4, 1, 2**30), (16, 512, 1)),
        (Shuffled(window="32MB"), (10**6, 1e4, 1e4, 1, 2**30), (32, 512, 1)),
        (Shuffled(window="1MB"), (10**6, 900, 900, 1, 2**30), (64, 1024, 1)),
        (Shuffled(window=9000), (10**6, 9, 9, 1, 2**30), (64, 1024, 1)),
        (Shuffled(window="64GB"), (10**8, 9, 9, 1, 2**40), (4096, 512, 1)),
        (Shuffled(window="64GB"), (10**8, 9, 9, 4, 2**40), (1024, 2048, 4)),
        (Shuffled(window="64GB", lanes=32), (10**8, 9, 9, 4, 2**40), (512, 4096, 32)),
        (Shuffled(window="64GB"), (10**6, 9e3, 9e3, 1, 2**26), (64, 256, 1)),
        (Shuffled(window="1kB", lanes=9), (30, 300, 100, 1, 2**30), (1, 8, 8)),
    ],
)
def test_windows_and_blocks_are_chosen_like_these(order: Any, seen: Any, wanted: Any) -> None:
    samples, each, first, lanes, most = seen
    known = {"sample_bytes": each, "first_bytes": first, "lanes": lanes, "window_bytes": most}

    assert tuple(order.measure(outlook(samples, **known)).values()) == wanted


def test_what_is_mixed_has_this_geometry(mixture: Mixture) -> None:
    def measured(order: Any, **options: Any) -> list[Any]:
        found = Loader(mixture, order=order, **options).geometry["order"]
        return [found["unit"], *(tuple(part.values()) for part in found["parts"])]

    assert measured(Permuted(), batch=TokenBudget("x", 9)) == [4096, (4096,), (4096,), (4096,)]
    assert measured(Shuffled(window=1200)) == [12, (1, 2, 1), (1, 2, 1), (1, 1, 1)]
    assert measured(Shuffled(), budget=4000) == [17, (1, 2, 1), (1, 1, 1), (1, 1, 1)]


def test_samples_are_taken_to_be_of_these_sizes(tmp_path: Path) -> None:
    sizes = Sizes(stored(tmp_path / "store", [i // 10 for i in range(1300)], 0))

    assert (sizes.mean, sizes.mean_of_first()) == (571.6484375, 461.609375)


#: After three batches of the loader below, as order version 1 has it.
STATE = """
{"format": 1, "order_version": 1, "epoch": 2, "begun": true, "batches": 3, "batches_a_step": 1,
"unit": 2, "given": 1,
"left": [[[7, 7, 15, 15], [0, 7, 0, 0], [7, 10, 1, 1], null, [5, 5, 6, 7]]], "samples": 16,
"geometry": {"order": {"unit": 4}, "batch": {}}, "options": {
"order": "Weighted(<16 weights, 5248005e>, seed=1, count=12)",
"batch": "Packed(field='x', length=7, rows=2, longer='split')", "crop": "()", "where": "None",
"drop_last": "False", "parts": ""}}
"""


def test_a_state_that_was_written_earlier_goes_on_with_these(store: rs.Store) -> None:
    loader = Loader(store, order=Weighted(range(16), 1, count=12), batch=Packed("x", 7, rows=2))
    batches = iter(kept(loader, UNITS))
    before = told(next(batches) for _ in range(3))
    assert before == "13 13 11/2 11+7|11+7/11|15 15 10/14"
    # There is more in states now; what they had is as it was.
    assert loader.state_dict() | json.loads(STATE) == loader.state_dict()

    loader.load_state_dict(json.loads(STATE))

    assert told(loader) == "7 13/7+7 15"
