"""The datasets for PyTorch's own DataLoader against the store they read."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    random_split,
)

import raggedstore as rs
from raggedstore.torch import Collate, MapDataset, Rows, collate, to_tensors

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = {
    "audio": rs.Field(">i2", (None,)),
    "mel": rs.Field("float32", (None, 4)),
    "image": rs.Field("uint8", (None, None, 3)),
    "label": rs.Field(">i8"),
    "weight": rs.Field("float32"),
    "vector": rs.Field("float16", (3,)),
    "text": rs.Field("str"),
    "raw": rs.Field("bytes"),
}
COUNT = 60
ALIKE = ["label", "weight", "vector"]  # of one shape, whatever the sample


def sample(i: int) -> dict[str, Any]:
    return {
        "audio": np.arange(i % 50, dtype="i2"),
        "mel": np.full((i % 7, 4), i, "f4"),
        "image": np.full((i % 4, i % 3, 3), i % 256, "u1"),
        "label": i,
        "weight": np.float32(i / 3),
        "vector": np.full(3, i, "f2"),
        "text": "да" * (i % 5) + str(i),
        "raw": bytes(i % 6),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    path = tmp_path_factory.mktemp("torch") / "store"
    store = rs.create(path, SCHEMA)
    for first, last in ((0, 40), (40, COUNT)):  # two segments
        with store.writer() as writer:
            writer.extend(sample(i) for i in range(first, last))
    return rs.open(path)


def same(one: Any, other: Any) -> None:
    """Exactly the same: dtypes and shapes too."""
    if isinstance(other, dict):
        assert list(one) == list(other)
        for name in other:
            same(one[name], other[name])
    elif isinstance(other, list):
        assert isinstance(one, list)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(other, torch.Tensor) and other.is_nested:
        assert one.is_nested
        for a, b in zip(one.unbind(), other.unbind(), strict=True):
            same(a, b)
    elif isinstance(other, torch.Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.equal(one, other)
    else:
        assert one == other


def is_sample(got: dict[str, Any], i: int) -> None:
    """A sample of tensors is sample `i` of the store."""
    want = sample(i)
    assert list(got) == list(want)
    for name, field in SCHEMA.items():
        if field.kind == "array":
            assert got[name].dtype == torch.from_numpy(np.empty(0, field.dtype.name)).dtype
            np.testing.assert_array_equal(got[name].numpy(), want[name])
        else:
            assert got[name] == want[name]


def check(batch: dict[str, Any]) -> list[int]:
    """Every sample of a collated batch is the one its label names; the labels."""
    labels: list[int] = batch["label"].tolist()
    for row, i in enumerate(labels):
        got = {name: batch[name][row] for name in SCHEMA}
        for name in ("audio", "mel"):
            rest = got[name][batch[f"{name}_lengths"][row] :]
            got[name] = got[name][: batch[f"{name}_lengths"][row]]
            assert not rest.any()
        height, width, _ = batch["image_shapes"][row]
        got["image"] = got["image"][:height, :width]
        is_sample(got, i)
    return labels


# One sample, or a list of them


def test_a_sample_is_that_of_the_store(store: rs.Store) -> None:
    dataset = MapDataset(store)

    assert len(dataset) == COUNT
    for i in (0, 1, 59):
        is_sample(dataset[i], i)
    is_sample(dataset[-1], 59)
    assert [int(s["label"]) for s in dataset] == list(range(COUNT))
    with pytest.raises(IndexError):
        dataset[COUNT]
    for wrong in ("audio", 1.0, slice(0, 2)):
        with pytest.raises(rs.KeyTypeError):
            dataset[wrong]


def test_a_list_of_samples_is_read_at_once(
    store: rs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = rs.Store.read
    monkeypatch.setattr(
        rs.Store, "read", lambda self, name, where: reads.append(name) or read(self, name, where)
    )
    rows = MapDataset(store).__getitems__([5, torch.tensor(59), np.int32(0), 5])

    assert reads == list(SCHEMA)
    for row, i in zip(rows, [5, 59, 0, 5], strict=True):
        is_sample(row, i)
    is_sample(rows[-2], 0)
    assert [int(row["label"]) for row in rows[1:3]] == [59, 0]
    assert len(reads) == len(SCHEMA)
    again = pickle.loads(pickle.dumps(rows))
    same(list(again), list(rows))
    same(collate(again), collate(rows))


def test_fields_views_and_concatenations(store: rs.Store) -> None:
    some = store.select(np.arange(COUNT) % 2 == 1)
    both = MapDataset(rs.concat([some, some]), fields=["text", "label"])

    assert list(both[0]) == ["text", "label"]
    assert both.__getitems__([30, 1])[0]["text"] == some[0]["text"]
    assert "60 samples, text, label" in repr(both)
    with pytest.raises(rs.UsageError, match="list"):
        MapDataset([1, 2])
    with pytest.raises(rs.UnknownFieldError):
        MapDataset(store, fields=["video"])


def test_a_dtype_that_pytorch_lacks_names_the_field(tmp_path: Path) -> None:
    schema = {"label": rs.Field("i8"), "wide": rs.Field(np.longdouble, (None,))}
    with rs.create(tmp_path / "wide", schema).writer() as writer:
        writer.append({"label": 1, "wide": np.zeros(3, np.longdouble)})
    store = rs.open(tmp_path / "wide")

    assert len(MapDataset(store, fields=["label"])) == 1
    for wrong in (lambda: MapDataset(store), lambda: to_tensors(store.batch([0]))):
        with pytest.raises(rs.UsageError, match="field 'wide'"):
            wrong()


# Batches


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(
    st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=6),
    st.fixed_dictionaries(
        {
            "padding_value": st.sampled_from([0, 9, {"audio": -5}]),
            "side": st.sampled_from(["left", "right"]),
            "multiple_of": st.integers(1, 3),
            "time_first": st.booleans(),
            "mask": st.booleans(),
            "nested": st.sampled_from([False, ["audio", "mel"]]),
        }
    ),
)
def test_a_batch_in_one_piece_and_one_by_one_are_padded_the_same(
    store: rs.Store, indices: list[int], options: dict[str, Any]
) -> None:
    rows = MapDataset(store).__getitems__(indices)

    got = Collate(**options)(rows)

    same(Collate(**options, schema=store.schema)(list(rows)), got)
    same(Collate(**options)(Rows(store.schema, None, list(rows))), got)
    # And as the batch itself is padded.
    nested = options.pop("nested") or []
    value = options.pop("padding_value")
    masked = options.pop("mask")
    for name in ("audio", "mel", "image"):
        column = store[name].batch(indices)
        if name in nested:
            same(got[name], column.to_torch_nested())
            continue
        fill = value.get(name, 0) if isinstance(value, dict) else value
        np.testing.assert_array_equal(got[name].numpy(), column.to_padded(fill, **options))
        beside = "shapes" if name == "image" else "lengths"
        np.testing.assert_array_equal(got[f"{name}_{beside}"].numpy(), getattr(column, beside))
        assert (f"{name}_mask" in got) == masked
        if masked:
            np.testing.assert_array_equal(got[f"{name}_mask"].numpy(), column.mask(**options))


def test_whether_lengths_or_shapes_come_beside_does_not_depend_on_the_batch(
    store: rs.Store,
) -> None:
    dataset = MapDataset(store, fields=["mel", "image", "vector"])
    keys = ["mel", "mel_lengths", "image", "image_shapes", "vector"]

    for indices in ([1], [1, 1], [0, 5, 7]):
        assert list(collate(dataset.__getitems__(indices))) == keys
        assert list(to_tensors(dataset.samples.batch(indices), schema=store.schema)) == keys
    # Nobody has said what the fields are: all but scalars is ragged.
    assert list(collate([dataset[1], dataset[1]])) == [
        *("mel", "mel_lengths", "image", "image_lengths", "vector", "vector_lengths")
    ]


def test_a_batch_as_nested_tensors_or_as_its_parts(store: rs.Store) -> None:
    batch = store.batch([3, 8, 1])
    batch["vector"] = native = batch["vector"].copy()

    made = to_tensors(batch, {"audio": "nested", "mel": "values"}, mask=True)

    assert [t.tolist() for t in made["audio"].unbind()] == [a.tolist() for a in batch["audio"]]
    assert made["mel"].values.data_ptr() == batch["mel"].values.ctypes.data
    assert made["mel"].offsets.tolist() == batch["mel"].offsets.tolist()
    assert made["vector"].data_ptr() == native.ctypes.data
    assert made["text"] is batch["text"]
    assert "image_mask" in made and "audio_mask" not in made
    made["image_shapes"].zero_()
    assert batch["image"].shapes.any(), "what comes beside a copy is one too"
    for wrong in ("jagged", {"audio": "jagged"}):
        with pytest.raises(rs.UsageError, match="'padded', 'nested' or 'values'"):
            to_tensors(batch, wrong)
    with pytest.raises(rs.UsageError, match=r"field 'image'.*to_padded"):
        Collate(nested=True)(MapDataset(store).__getitems__([4, 5, 6]))


def test_a_transform_may_make_of_a_sample_what_it_likes(store: rs.Store) -> None:
    def transform(sample: dict[str, Any]) -> dict[str, Any]:
        return {
            "frames": torch.ones(len(sample["audio"]), 2, dtype=torch.bfloat16),
            "mel": sample["mel"].sum(0),  # of another dimension than the field
            "vector": sample["vector"][: int(sample["label"]) % 3],  # of another size
            "image": sample["image"],
            "label": sample["label"],
            "half": int(sample["label"]) / 2,
            "text": sample["text"],
            "pair": (1, np.float32(2)),
        }

    dataset = MapDataset(store, transform=transform)
    batch = collate(dataset.__getitems__([4, 5]))

    assert batch["frames"].shape == (2, 5, 2) and batch["frames"].dtype == torch.bfloat16
    assert batch["frames_lengths"].tolist() == [4, 5]
    assert batch["mel"].shape == (2, 4)
    assert batch["vector"].shape == (2, 2) and batch["vector_lengths"].tolist() == [1, 2]
    assert "image_shapes" in batch
    assert batch["label"].tolist() == [4, 5] and batch["half"].tolist() == [2, 2.5]
    assert batch["text"] == [sample(4)["text"], sample(5)["text"]]
    assert [t.tolist() for t in batch["pair"]] == [[1, 1], [2, 2]]
    same(dataset[4]["frames"], dataset.__getitems__([4])[0]["frames"])
    nested = Collate(nested=["frames"])(dataset.__getitems__([4, 5]))["frames"]
    assert [len(t) for t in nested.unbind()] == [4, 5] and nested.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "1 sample at least"),
        ([(1, 2)], "dicts.*tuple"),
        ([{"a": 1}, {"b": 1}], "same fields, got a and b"),
        ([{"a": torch.zeros(2)}, {"a": torch.zeros(2, 2)}], "'a'.*1-d.*2-d"),
        ([{"a": torch.zeros(2)}, {"a": torch.zeros(2).int()}], "'a'.*float32.*int32"),
        ([{"a": np.zeros(2, np.longdouble)}], "'a'.*no dtype"),
        ([{"a": object()}], "'a'"),
        ([{"a": torch.zeros(2), "a_lengths": 3}], "'a_lengths' to field 'a'"),
    ],
)
def test_samples_that_make_no_batch_are_refused(samples: Any, message: str) -> None:
    with pytest.raises(rs.UsageError, match=message):
        collate(samples)


def test_wrong_ways_of_collating_are_refused_before_a_worker_meets_them() -> None:
    for wrong in ({"side": "top"}, {"multiple_of": 0}, {"nested": "audio"}):
        with pytest.raises(rs.UsageError):
            Collate(**wrong)
    with pytest.raises(rs.UsageError, match="'a_lengths' to field 'a'"):
        to_tensors({"a": rs.RaggedBatch([1], [0, 1]), "a_lengths": np.ones(1)})


def test_what_is_read_only_stays_so() -> None:
    values, label = np.arange(4.0), np.arange(2)
    frozen = [values[:], label[:]]
    for array in frozen:
        array.flags.writeable = False
    batch = {"audio": rs.RaggedBatch(frozen[0], [0, 1, 4]), "label": frozen[1]}

    for ragged in ("padded", "nested", "values"):
        made = to_tensors(batch, ragged)
        audio = made["audio"]
        if ragged == "nested":
            audio = audio.values()
        elif ragged == "values":
            audio = audio.values
        audio.fill_(-1)
        made["label"].fill_(-1)
    assert values.tolist() == [0, 1, 2, 3] and label.tolist() == [0, 1]


# PyTorch's DataLoader


def epoch(loader: Iterable[dict[str, Any]]) -> list[int]:
    return [label for batch in loader for label in check(batch)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize(
    ("workers", "method"), [(0, None), (2, "fork"), (2, "spawn")], ids=["none", "fork", "spawn"]
)
def test_a_data_loader_gives_every_sample_once(
    store: rs.Store, workers: int, method: str | None
) -> None:
    store.batch([0, 50])  # its threads are there, and must not be missed in a fork
    dataset = MapDataset(store)
    loader = DataLoader(
        dataset,
        batch_size=8,
        sampler=RandomSampler(dataset),
        collate_fn=Collate(multiple_of=4),
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=workers > 0,
        pin_memory=True,
    )

    first, second = epoch(loader), epoch(loader)

    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first != second


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_nested_tensors_come_from_workers(store: rs.Store, workers: int) -> None:
    loader = DataLoader(
        MapDataset(store, fields=["audio", "label"]),
        batch_size=7,
        collate_fn=Collate(nested=True),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    samples = [tensor.tolist() for batch in loader for tensor in batch["audio"].unbind()]

    assert samples == [sample(i)["audio"].tolist() for i in range(COUNT)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_samples_alike_need_no_collation_of_ours(store: rs.Store, workers: int) -> None:
    dataset = MapDataset(store, fields=[*ALIKE, "text"])
    loader = DataLoader(
        dataset,
        batch_size=COUNT,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    (batch,) = loader

    same(batch, collate(dataset.__getitems__(range(COUNT))))
    (rows,) = DataLoader(dataset, batch_size=COUNT, collate_fn=list)
    same(rows, [dataset[i] for i in range(COUNT)])


def test_samples_that_are_not_alike_do(store: rs.Store) -> None:
    with pytest.raises(RuntimeError, match="equal size"):
        list(DataLoader(MapDataset(store, fields=["audio"]), batch_size=8))


def test_each_rank_has_its_own_samples(store: rs.Store) -> None:
    dataset = MapDataset(store)
    samplers = [DistributedSampler(dataset, num_replicas=2, rank=rank) for rank in (0, 1)]
    ranks = [epoch(DataLoader(dataset, 8, sampler=s, collate_fn=collate)) for s in samplers]

    assert len(ranks[0]) == len(ranks[1])
    assert sorted(ranks[0] + ranks[1]) == list(range(COUNT))


def test_parts_and_sums_of_datasets(store: rs.Store) -> None:
    dataset = MapDataset(store)
    train, test = random_split(dataset, [40, 20])

    parts = [epoch(DataLoader(part, 8, collate_fn=collate)) for part in (train, test)]
    assert sorted(parts[0] + parts[1]) == list(range(COUNT))

    # It asks for samples one by one, so that the fields have to be said.
    joined = ConcatDataset([train, test])
    loader = DataLoader(joined, 8, collate_fn=Collate(schema=store.schema))
    assert epoch(loader) == parts[0] + parts[1]


# Without PyTorch


def test_only_who_asks_for_it_imports_pytorch() -> None:
    script = """
import sys
import raggedstore as rs
rs.RaggedBatch([1, 2], [0, 2]).to_padded()
assert not {"torch", "pyarrow", "awkward"} & set(sys.modules)
missing = {
    "torch": lambda: rs.torch,
    "torch ": lambda: rs.RaggedBatch([1], [0, 1]).to_torch(),
    "arrow": lambda: rs.RaggedBatch([1], [0, 1]).to_arrow(),
    "awkward": lambda: rs.RaggedBatch([1], [0, 1]).to_awkward(),
}
for name in ("torch", "pyarrow", "awkward"):
    sys.modules[name] = None
for extra, ask in missing.items():
    try:
        ask()
    except rs.MissingExtraError as error:
        assert f"raggedstore[{extra.strip()}]" in str(error)
    else:
        raise AssertionError(extra)
try:
    rs.tensorflow
except AttributeError as error:
    assert "tensorflow" in str(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_package_has_it_by_its_short_name() -> None:
    assert rs.torch.MapDataset is MapDataset
    assert "torch" not in rs.__all__
