"""A store holds what a list of samples holds, whatever the schema, the commits and the index."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import raggedstore as rs
from raggedstore.store import files, lists
from tests import strategies
from tests.model import assert_same, assert_same_value, at

QUIET = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def reopen(path: Path, **options: Any) -> rs.Store:
    store = rs.open(path, **options)
    assert isinstance(store, rs.Store)
    return store


@QUIET
@given(st.data())
def test_any_samples_in_any_commits_read_back_at_any_index(data: st.DataObject) -> None:
    schema = data.draw(strategies.schemas())
    samples = data.draw(st.lists(strategies.samples(schema), max_size=12))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(samples)), max_size=3)))
    profile = data.draw(st.sampled_from(["fast", "balanced", "small"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        store = rs.create(path, schema, profile=profile)
        for low, high in zip([0, *cuts], [*cuts, len(samples)], strict=True):
            with store.writer() as writer:
                writer.extend(samples[low:high])
        if data.draw(st.booleans()):
            store.compact()
        store.export(Path(folder) / "one.h5")
        for opened in (store, reopen(path, in_memory=True), rs.open(Path(folder) / "one.h5")):
            assert opened.schema == schema
            assert len(opened) == len(samples)
            assert_same(schema, list(opened), samples)
            for key in data.draw(st.lists(strategies.keys(len(samples)), max_size=4)):
                try:
                    want = at(samples, key)
                except (IndexError, TypeError) as error:
                    with pytest.raises(rs.RaggedStoreError) as caught:
                        opened[key]
                    # NumPy calls a float index an IndexError, a list a TypeError: ours is both.
                    assert isinstance(caught.value, type(error))  # noqa: PT017
                else:
                    assert_same(schema, opened[key], want)


@QUIET
@given(st.data())
def test_extend_batch_stores_what_append_stores(data: st.DataObject) -> None:
    schema = data.draw(strategies.schemas())
    samples = data.draw(st.lists(strategies.samples(schema), max_size=8))
    batch: dict[str, Any] = {}
    for name, field in schema.items():
        column = [sample[name] for sample in samples]
        if field.kind != "array":
            batch[name] = column
        elif field.is_ragged:
            batch[name] = rs.RaggedBatch.from_list(column, field.dtype, field.ndim)
        else:
            batch[name] = np.array(column, field.dtype).reshape(len(column), *field.shape)
    with tempfile.TemporaryDirectory() as folder:
        store = rs.create(Path(folder) / "store", schema)
        with store.writer() as writer:
            writer.extend_batch(batch)
            writer.extend_batch(batch)
        assert_same(schema, list(store), samples + samples)
        back = store.batch(slice(len(samples)))
        for name, field in schema.items():
            for got, sample in zip(back[name], samples, strict=True):
                assert_same_value(field, got, sample[name])


class Store(RuleBasedStateMachine):
    """Append, commit, race, abort, compact, vacuum and old versions, beside a list of samples.

    Manifests hold so few segments themselves that most are in lists.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = ExitStack()

    @initialize(data=st.data(), direct=st.integers(1, 3))
    def create(self, data: st.DataObject, direct: int) -> None:
        # Any of these may end the example, a draw too: what was there by then is cleaned up.
        patched = self.held.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(lists, "DIRECT", direct)
        folder = self.held.enter_context(tempfile.TemporaryDirectory())
        self.path = Path(folder) / "store"
        self.schema = data.draw(strategies.schemas())
        self.store = self.held.enter_context(rs.create(self.path, self.schema))
        self.reader = self.held.enter_context(reopen(self.path))
        self.versions: dict[int, list[Any]] = {0: []}

    def teardown(self) -> None:
        self.held.close()

    @property
    def samples(self) -> list[Any]:
        return self.versions[max(self.versions)]

    @rule(data=st.data(), early=st.booleans())
    def append(self, data: st.DataObject, early: bool) -> None:
        new = data.draw(st.lists(strategies.samples(self.schema), min_size=1, max_size=4))
        with self.store.writer() as writer:
            writer.append(new[0])
            if early:
                version = writer.commit()
                self.versions[version] = [*self.samples, new[0]]
            writer.extend(new[1:])
            rest = new[1:] if early else new
        if rest:
            self.versions[self.store.version] = [*self.samples, *rest]

    @rule(data=st.data(), winner=st.sampled_from(["append", "compact", "vacuum"]))
    def race(self, data: st.DataObject, winner: str) -> None:
        """Another process is at work just before this one's version is linked."""
        ours, theirs = (data.draw(strategies.samples(self.schema)) for _ in range(2))
        real = files.publish

        def publish(path: Path, content: bytes, **options: Any) -> None:
            patched.undo()
            with reopen(self.path, mode="a") as other:
                before = other.version
                if winner == "append":
                    with other.writer() as writer:
                        writer.append(theirs)
                    self.versions[other.version] = [*self.samples, theirs]
                elif winner == "compact":
                    if other.compact() != before:
                        self.versions[other.version] = self.samples
                else:
                    other.vacuum(keep=1)
            real(path, content, **options)

        with pytest.MonkeyPatch.context() as patched, self.store.writer() as writer:
            writer.append(ours)
            patched.setattr(files, "publish", publish)
        self.versions[self.store.version] = [*self.samples, ours]
        self.versions = {v: s for v, s in self.versions.items() if v in self.store.versions()}

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        before = self.store.versions()
        with pytest.raises(ZeroDivisionError), self.store.writer() as writer:
            writer.append(data.draw(strategies.samples(self.schema)))
            raise ZeroDivisionError
        assert self.store.versions() == before

    @rule()
    def compact(self) -> None:
        before = max(self.versions)
        version = self.store.compact()
        if version != before:
            self.versions[version] = self.samples
            assert len(self.store.manifest.segments) == 1

    @rule(keep=st.integers(1, 3))
    def vacuum(self, keep: int) -> None:
        self.store.vacuum(keep=keep)
        kept = {*sorted(self.versions)[-keep:], self.reader.version}
        assert set(self.store.versions()) == kept
        self.versions = {v: s for v, s in self.versions.items() if v in kept}

    @rule(data=st.data())
    def open_an_old_version(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        with reopen(self.path, version=version) as old:
            assert_same(self.schema, list(old), self.versions[version])

    @precondition(lambda self: self.reader.version != max(self.versions))
    @rule()
    def refresh(self) -> None:
        assert self.reader.refresh() == max(self.versions)

    @invariant()
    def everyone_sees_their_own_version(self) -> None:
        if hasattr(self, "store"):
            assert_same(self.schema, list(self.store), self.samples)
            assert_same(self.schema, list(self.reader), self.versions[self.reader.version])

    @invariant()
    def nothing_is_wrong_with_it(self) -> None:
        if hasattr(self, "store"):
            assert self.store.verify().ok


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=15,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
