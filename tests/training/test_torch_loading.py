"""Loaders under PyTorch: real DataLoaders with real workers, and processes that train together."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import raggedstore as rs
from raggedstore.torch import LoaderDataset
from raggedstore.training import (
    Bucketed,
    FixedSize,
    Loader,
    Packed,
    Permuted,
    Rule,
    Shuffled,
    TokenBudget,
    Windowed,
)

COUNT = 83

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> rs.Store:
    path = tmp_path_factory.mktemp("torch") / "store"
    store = rs.create(path, {"a": rs.Field("int32", (None,)), "i": rs.Field("int64")})
    with store.writer() as writer:
        writer.extend({"a": np.arange(i * 7 % 20), "i": i} for i in range(COUNT))
    return rs.open(path)


def loader_of(store: rs.Store, rule: Rule | None = None, **options: Any) -> Loader:
    order = Shuffled(3, window=700)
    return Loader(store, order=order, batch=rule or FixedSize(5), budget="4MB", **options)


def plain(batches: Any) -> list[dict[str, Any]]:
    return [{name: torch.as_tensor(c).tolist() for name, c in b.items()} for b in batches]


def ids(batches: list[dict[str, Any]]) -> Counter[int]:
    return Counter(i for batch in batches for i in batch["i"])


def loading(dataset: LoaderDataset, workers: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=None, num_workers=workers, **options)


RULES = [FixedSize(5), Bucketed("a", 4), TokenBudget("a", 60), Packed("a", 32, rows=2)]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_hand_over_what_the_loader_would(store: rs.Store, rule: Any, method: str) -> None:
    if method == "spawn" and rule is not RULES[0]:
        pytest.skip("one rule is enough for the slow way to start processes")
    alone = LoaderDataset(loader_of(store, rule))
    epochs = [plain(loading(alone, 0)) for _ in range(3)]
    shared = loading(LoaderDataset(loader_of(store, rule)), 2, multiprocessing_context=method)

    assert [plain(shared) for _ in range(3)] == epochs
    assert ids(epochs[0]) == ids(epochs[1]) == Counter(range(COUNT))
    assert epochs[0] != epochs[1]
    assert isinstance(next(iter(loading(alone, 0)))["a"], torch.Tensor)


def _no_fives(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["i"] % 5 == 0:
        raise ValueError(f"{sample['i']} is odd")
    return sample


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("persistent", [False, True])
def test_what_workers_set_aside_is_listed_in_the_main_process(
    store: rs.Store, method: str, persistent: bool
) -> None:
    alone = loader_of(store, on_error="skip").map(_no_fives, per="sample")
    wanted = [ids(list(alone)), ids(list(alone))]
    loader = loader_of(store, on_error="skip").map(_no_fives, per="sample")
    shared = loading(
        LoaderDataset(loader),
        2,
        multiprocessing_context=method if persistent or method == "spawn" else None,
        persistent_workers=persistent,
    )

    assert loader.quarantine == []
    assert ids(plain(shared)) == wanted[0]
    first = list(loader.quarantine)
    assert ids(plain(shared)) == wanted[1]

    by_epoch = sorted(loader.quarantine, key=lambda lost: (lost.epoch, lost.step))
    assert by_epoch == alone.quarantine
    assert sorted(first, key=lambda lost: lost.step) == alone.quarantine[: len(first)]
    assert {lost.position for lost in first} == set(range(0, COUNT, 5))
    loader.quarantine.clear()
    assert loader.quarantine == []


def test_persistent_workers_go_on_to_the_next_epoch(store: rs.Store) -> None:
    alone = LoaderDataset(loader_of(store))
    epochs = [plain(loading(alone, 0)) for _ in range(3)]
    dataset = LoaderDataset(loader_of(store))

    shared = loading(dataset, 3, persistent_workers=True)

    assert [plain(shared) for _ in range(3)] == epochs


def test_each_epoch_comes_once_whatever_the_numbers_of_workers(store: rs.Store) -> None:
    alone = LoaderDataset(loader_of(store))
    numbers = [1, 2, 3, 0, 0, 2, 1]
    epochs = [plain(loading(alone, 0)) for _ in numbers]
    dataset = LoaderDataset(loader_of(store))

    assert [plain(loading(dataset, workers)) for workers in numbers] == epochs


class _Waits:
    """Has one worker begin only when it is told to."""

    def __init__(self, worker: int, told: Any) -> None:
        self.worker, self.told = worker, told

    def __call__(self, worker: int) -> None:
        if worker == self.worker:
            assert self.told.wait(timeout=300)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_at_the_same_time_are_apart(store: rs.Store, method: str, persistent: bool) -> None:
    alone = LoaderDataset(loader_of(store))
    epochs = [plain(loading(alone, 0)) for _ in range(4)]
    dataset = LoaderDataset(loader_of(store))
    context = torch.multiprocessing.get_context(method)
    told = context.Event()
    kept = {"multiprocessing_context": context, "persistent_workers": persistent}
    late = loading(dataset, 2, worker_init_fn=_Waits(1, told), **kept)
    soon = loading(dataset, 2, **kept)

    first = iter(late)
    one = plain([next(first)])  # of worker 0, and worker 1 waits
    second = iter(soon)
    other = plain([next(second)])
    told.set()

    assert one + plain(first) == epochs[0]
    assert other + plain(second) == epochs[1]
    assert dataset.loader.epoch == 2
    assert [plain(late), plain(soon)] == epochs[2:]
    assert dataset.loader.epoch == 4


def test_persistent_workers_and_others_take_turns(store: rs.Store) -> None:
    alone = LoaderDataset(loader_of(store))
    dataset = LoaderDataset(loader_of(store))
    stay = [loading(dataset, workers, persistent_workers=True) for workers in (2, 3)]
    once = loading(dataset, 2)

    for batches in (stay[0], stay[1], once, stay[0], once, stay[1], stay[0]):
        assert plain(batches) == plain(loading(alone, 0))


@pytest.mark.parametrize("anew", [False, True])
def test_the_loader_counts_the_epochs_of_workers(store: rs.Store, anew: bool) -> None:
    loader = loader_of(store)
    dataset, epochs = LoaderDataset(loader), []
    while loader.epoch < 3:
        assert len(epochs) == loader.epoch
        epochs.append(plain(loading(LoaderDataset(loader) if anew else dataset, 2)))

    alone = LoaderDataset(loader_of(store))
    assert epochs == [plain(loading(alone, 0)) for _ in range(3)]
    assert loader.state_dict() == alone.loader.state_dict()
    assert repr(loader).endswith("next is epoch 3>")
    assert plain(LoaderDataset(loader)) == plain(alone)
    assert loader.epoch == 4


def test_copies_go_on_after_the_epochs_of_workers(store: rs.Store) -> None:
    alone = loader_of(store)
    list(alone)
    second = plain(LoaderDataset(alone))
    dataset = LoaderDataset(loader_of(store))
    plain(loading(dataset, 2))

    other = pickle.loads(pickle.dumps(dataset))

    assert plain(LoaderDataset(dataset.loader.map(_as_it_is))) == second
    assert plain(loading(other, 2)) == second
    assert (dataset.loader.epoch, other.loader.epoch) == (1, 2)
    assert plain(loading(dataset, 2)) == second


def _as_it_is(batch: Any) -> Any:
    return batch


def test_what_a_loader_plans_is_of_the_epoch_that_workers_began_last(store: rs.Store) -> None:
    loader = loader_of(store)
    shared = loading(LoaderDataset(loader), 2)
    plain(shared)
    batches = iter(shared)
    seen = plain(next(batches) for _ in range(3))

    state = loader.state_after(3)

    assert loader.samples_at(1).tolist() == seen[1]["i"]
    assert loader.step_of(seen[2]["i"][0]) == 2
    other = loader_of(store)
    other.load_state_dict(state)
    assert plain(LoaderDataset(other)) == plain(batches)
    assert loader.state_after(3) == loader.state_after(3, epoch=1) == state
    loader.set_epoch(0)
    assert loader.state_after(3)["epoch"] == 0


def numbered(store: rs.Store, first: int, last: int) -> None:
    with store.writer() as writer:
        writer.extend({"i": i} for i in range(first, last))


def of_twenty(tmp_path: Path) -> tuple[rs.Store, Loader]:
    """A store that may grow, and a loader of its first samples."""
    store = rs.create(tmp_path / "store", {"i": rs.Field("int64")})
    numbered(store, 0, 20)
    return store, Loader(rs.open(store.path), order=Permuted(1), batch=5)


def test_a_loader_that_was_refreshed_goes_on_after_the_epochs_of_workers(tmp_path: Path) -> None:
    growing, loader = of_twenty(tmp_path)
    shared = loading(LoaderDataset(loader), 2)
    plain(shared)
    numbered(growing, 20, 40)

    assert loader.refresh() == 40
    assert len(shared) == 8 and loader.epoch == 1
    assert ids(plain(shared)) == Counter(range(40))
    assert loader.epoch == 2


def test_a_refresh_while_workers_read_leaves_the_states_of_their_epoch(tmp_path: Path) -> None:
    growing, loader = of_twenty(tmp_path)
    shared = loading(LoaderDataset(loader), 2)
    batches = iter(shared)
    seen = plain([next(batches)])
    numbered(growing, 20, 40)
    loader.refresh()

    state = loader.state_after(1, epoch=0)

    assert state == loader.state_after(1)
    other = Loader(rs.open(growing.path), order=Permuted(1), batch=5)
    other.load_state_dict(state)
    rest = plain(LoaderDataset(other))
    assert rest == plain(batches) and ids(seen + rest) == Counter(range(20))
    assert ids(plain(shared)) == Counter(range(40))
    assert loader.state_after(8, epoch=1)["samples"] == 40


def test_one_seed_and_other_numbers_of_workers_are_other_epochs(store: rs.Store) -> None:
    alone = LoaderDataset(loader_of(store))
    dataset = LoaderDataset(loader_of(store))
    for workers in (1, 2, 3, 2):
        torch.manual_seed(0)
        assert plain(loading(dataset, workers)) == plain(loading(alone, 0))


def test_epochs_go_on_where_each_begins_with_the_same_seed(store: rs.Store) -> None:
    alone = LoaderDataset(loader_of(store))
    epochs = [plain(loading(alone, 0)) for _ in range(3)]
    dataset, got = LoaderDataset(loader_of(store)), []
    for _ in epochs:
        torch.manual_seed(0)
        got.append(plain(loading(dataset, 2)))

    assert got == epochs


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("after", [0, 2])
def test_an_iterator_that_hands_over_nothing_has_had_no_epoch(
    store: rs.Store, before: int, after: int
) -> None:
    dataset = LoaderDataset(loader_of(store))
    first = plain(loading(dataset, before))
    iter(dataset)
    later = [plain(loading(dataset, after)) for _ in range(2)]

    whole = LoaderDataset(loader_of(store))
    assert [first, *later] == [plain(loading(whole, 0)) for _ in range(3)]


def test_iterators_side_by_side_have_an_epoch_each(store: rs.Store) -> None:
    dataset = LoaderDataset(loader_of(store))
    want = [plain(dataset) for _ in range(2)]
    data = loading(LoaderDataset(loader_of(store)), 0)
    both = [plain(batches) for batches in zip(data, data, strict=True)]
    assert both == [list(batches) for batches in zip(*want, strict=True)]


def test_positions_of_packed_rows_do_not_take_the_place_of_a_field(tmp_path: Path) -> None:
    schema = {"x": rs.Field("i4", (None,)), "x_positions": rs.Field("i4", (None,))}
    with rs.create(tmp_path / "s", schema) as store:
        with store.writer() as writer:
            writer.append({"x": np.arange(3), "x_positions": np.arange(2)})
        dataset = rs.torch.LoaderDataset(Loader(store, batch=Packed("x", 4)))
        with pytest.raises(rs.UsageError, match="adds 'x_positions' to field 'x'"):
            next(iter(dataset))


def test_what_a_transform_made_of_a_field_has_its_own_shapes(tmp_path: Path) -> None:
    with rs.create(tmp_path / "s", {"x": rs.Field("i4", (None,))}) as store:
        with store.writer() as writer:
            writer.extend({"x": np.arange(n)} for n in (4, 9))
        loader = Loader(store, batch=2).map(square, per="sample")
        (batch,) = rs.torch.LoaderDataset(loader)
    assert batch["x_shapes"].tolist() == [[2, 2], [3, 3]]


def square(sample: dict[str, Any]) -> dict[str, Any]:
    side = int(len(sample["x"]) ** 0.5)
    return {"x": sample["x"].reshape(side, side)}


@pytest.mark.parametrize("after", [0, 2, 3])
def test_a_datasets_own_state_goes_on_with_workers(store: rs.Store, after: int) -> None:
    begun, again = LoaderDataset(loader_of(store)), LoaderDataset(loader_of(store))
    batches = iter(begun)
    seen = plain(next(batches) for _ in range(5))

    again.load_state_dict(json.loads(json.dumps(begun.state_dict())))

    whole = LoaderDataset(loader_of(store))
    assert seen + plain(loading(again, after)) == plain(loading(whole, 0))
    assert plain(loading(again, after)) == plain(loading(whole, 0))


def test_workers_do_not_follow_a_store_each_by_itself(store: rs.Store) -> None:
    with pytest.raises(rs.UsageError, match="refresh"):
        plain(loading(LoaderDataset(loader_of(store, follow=True)), 1))


def test_a_state_of_workers_of_other_numbers_of_processes_is_refused(store: rs.Store) -> None:
    state = LoaderDataset(loader_of(store, rank=1, world_size=2)).state_dict()
    with pytest.raises(rs.UsageError, match="2 processes"):
        LoaderDataset(loader_of(store)).load_state_dict(state)


def test_an_epoch_can_be_set_between(store: rs.Store) -> None:
    alone = loader_of(store)
    alone.set_epoch(7)
    wanted = plain(loading(LoaderDataset(alone), 0))
    loader = loader_of(store)
    shared = loading(LoaderDataset(loader), 2)

    first = plain(shared)
    loader.set_epoch(7)
    seventh, eighth = plain(shared), plain(shared)
    loader.set_epoch(0)

    assert seventh == wanted and eighth != wanted
    assert plain(shared) == first


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 3)])
def test_a_state_goes_on_with_another_number_of_workers(
    store: rs.Store, before: int, after: int
) -> None:
    dataset = LoaderDataset(loader_of(store, Bucketed("a", 4)))
    batches = iter(loading(dataset, before))
    seen = plain(next(batches) for _ in range(6))
    state = json.loads(json.dumps(dataset.loader.state_after(6, epoch=0)))
    del batches

    loader = loader_of(store, Bucketed("a", 4))
    loader.load_state_dict(state)
    shared = loading(LoaderDataset(loader), after)
    rest, following = plain(shared), plain(shared)

    whole = LoaderDataset(loader_of(store, Bucketed("a", 4)))
    assert seen + rest == plain(loading(whole, 0))
    assert following == plain(loading(whole, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_goes_on_from_an_epochs_end_with_the_next(store: rs.Store, workers: int) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make() -> Any:
        dataset = LoaderDataset(loader_of(store))
        return StatefulDataLoader(dataset, batch_size=None, num_workers=workers)

    whole, begun, again = make(), make(), make()
    epochs = [plain(whole) for _ in range(3)]
    assert plain(begun) == epochs[0]
    again.load_state_dict(begun.state_dict())

    assert [plain(again), plain(again)] == epochs[1:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 5, 6, 17])
def test_torchdata_stops_and_goes_on(store: rs.Store, workers: int, stop: int) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make() -> Any:
        dataset = LoaderDataset(loader_of(store))
        return StatefulDataLoader(dataset, batch_size=None, num_workers=workers)

    whole = make()
    epochs = [plain(whole), plain(whole)]
    assert len(epochs[0]) == 17
    begun = make()
    batches = iter(begun)
    seen = plain(next(batches) for _ in range(stop))
    state = begun.state_dict()
    del batches

    again = make()
    again.load_state_dict(state)

    rest = plain(again)
    if stop < 17:
        assert seen + rest == epochs[0]
        rest = plain(again)
    elif not rest:
        rest = plain(again)
    assert rest == epochs[1]


def test_how_a_ragged_field_comes_is_to_choose(store: rs.Store) -> None:
    nested = next(iter(loading(LoaderDataset(loader_of(store), ragged="nested"), 0)))["a"]
    flat = next(iter(loading(LoaderDataset(loader_of(store), ragged="values"), 0)))["a"]
    padded = next(iter(loading(LoaderDataset(loader_of(store, collate="padded")), 0)))

    assert nested.is_nested and nested.layout == torch.jagged
    assert flat.values.ndim == 1
    assert padded["a"].shape == (5, padded["a_lengths"].max())
    counted = LoaderDataset(loader_of(store, collate=lambda b: len(b["i"])))
    assert sum(loading(counted, 0)) == COUNT


def test_the_length_is_known_where_it_is_steady(store: rs.Store) -> None:
    assert len(loading(LoaderDataset(loader_of(store)), 0)) == 17
    with pytest.raises(TypeError, match="TokenBudget"):
        len(LoaderDataset(loader_of(store, TokenBudget("a", 60))))
    with pytest.raises(rs.UsageError, match="not Store"):
        LoaderDataset(store)  # type: ignore[arg-type]


def _train(rank: int, world: int, path: str, folder: str, even: Any) -> None:
    """One of several processes that train one model together."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    rule = TokenBudget("a", 50)
    loader = Loader(
        rs.open(path), order=Permuted(1), batch=rule, rank=rank, world_size=world, even=even
    )
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    seen: list[list[int]] = []
    for batch in LoaderDataset(loader):
        loss = model(batch["a_lengths"][:, None].float()).mean()
        loss.backward()  # waits for the other process
        seen.append(batch["i"].tolist())
    grads = [p.grad.tolist() for p in model.parameters()]  # type: ignore[union-attr]
    Path(folder, f"{rank}.json").write_text(json.dumps({"seen": seen, "grads": grads}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("even", ["pad", "drop"])
def test_two_processes_train_together(store: rs.Store, tmp_path: Path, even: str) -> None:
    torch.multiprocessing.spawn(_train, (2, str(store.path), str(tmp_path), even), nprocs=2)

    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    one, other = (part["seen"] for part in parts)
    assert len(one) == len(other) > 3
    came = Counter(i for batch in one + other for i in batch)
    everything = len(list(Loader(store, order=Permuted(1), batch=TokenBudget("a", 50))))
    if even == "pad":
        assert set(came) == set(range(COUNT))
        assert sum(came.values()) - COUNT <= (everything % 2) * 50
    else:
        assert set(came.values()) == {1} and len(one) == everything // 2
    assert parts[0]["grads"] == parts[1]["grads"]


def test_windows_of_streams_come_as_time_first_tensors(store: rs.Store) -> None:
    rule = Windowed("a", 4, streams=3)
    loader = Loader(store, batch=rule, collate="padded", time_first=True)

    for batch in LoaderDataset(loader):
        assert batch["a"].shape[1] == 3 and batch["a"].shape[0] in (0, 4)
        assert batch["reset"].dtype == torch.bool


def test_what_is_no_way_to_give_tensors_or_no_state_is_told(store: rs.Store) -> None:
    loader = Loader(store, batch=4)
    for ragged in 5, "pad", {"audio": None}:
        with pytest.raises(rs.UsageError, match="ragged"):
            LoaderDataset(loader, ragged)
    with pytest.raises(rs.UsageError):
        state = {"loader": {}, "phase": float("inf"), "world_size": 1}
        LoaderDataset(loader).load_state_dict(state)
