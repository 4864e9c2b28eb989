"""A training that may be cut off anywhere, and goes on as if it had not been."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raggedstore.torch import LoaderDataset
from raggedstore.training import Loader

__all__ = ["Batch", "History", "Run", "Step", "samples_a_second", "train"]

#: Steps that are taken twice, to see that they come out the same.
CHECKED = 5
LOADED_SECONDS = 0.5
TESTS = 15
WARM_UP = 20  # steps in which the learning rate rises

Batch = dict[str, Any]


@dataclass
class Step:
    """One step: the loss, and which samples it was of."""

    loss: float
    samples: list[Any]


@dataclass
class History:
    """What happened in a training."""

    losses: list[float] = field(default_factory=list)
    #: After how many steps the model was tested, and what came out.
    tests: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    cut: int = 0  # after so many steps the training was cut off
    lost: list[Step] = field(default_factory=list)  # the steps that it had gone on for
    again: list[Step] = field(default_factory=list)  # the same, from the checkpoint
    samples: int = 0
    seconds: float = 0.0  # that the steps took


class Run:
    """A model on its way through a loader's batches, epoch after epoch.

    Parameters
    ----------
    loss
        Of the model, on a batch.
    named
        Which samples are in a batch.
    rate
        Of learning: it rises in the first steps, and has fallen to 0 after `steps`.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Loader,
        loss: Callable[[Any, Batch], Tensor],
        named: Callable[[Batch], list[Any]],
        *,
        rate: float,
        steps: int,
    ) -> None:
        self.model, self.steps, self.done = model, steps, 0
        self._loader, self._loss, self._named, self._rate = loader, loss, named, rate
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
        self._batches = self._forever()

    def _forever(self) -> Iterator[Batch]:
        """The batches of this epoch and of all that follow, as tensors."""
        dataset = LoaderDataset(self._loader)
        while True:
            yield from dataset

    def step(self) -> Step:
        """Learn from the next batch."""
        batch = next(self._batches)
        falling = (1 + math.cos(math.pi * self.done / self.steps)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * falling * min((self.done + 1) / WARM_UP, 1)
        loss = self._loss(self.model, batch)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.done += 1
        return Step(loss.item(), self._named(batch))

    def save(self, path: Path) -> None:
        """Write down all that the next step depends on."""
        state = {
            "loader": self._loader.state_dict(),  # plain numbers and strings
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),  # of dropout and noise
            "done": self.done,
        }
        torch.save(state, path)

    def load(self, path: Path) -> None:
        """Go on from what was written down; to be called before the first step."""
        state = torch.load(path)
        self._loader.load_state_dict(state["loader"])
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.done = state["done"]


def train(
    make: Callable[[], Run],
    test: Callable[[Any], dict[str, float]],
    checkpoint: Path,
) -> tuple[nn.Module, History]:
    """Train, cut off half way and gone on from the checkpoint.

    Parameters
    ----------
    make
        Makes model, optimizer and loader anew.
    test
        How good the model is; it is asked up to `TESTS` times.

    Returns
    -------
    The model, and what happened.
    """
    run, history = make(), History()
    tests = min(TESTS, max(run.steps // 5, 1))
    history.cut = run.steps // 2
    while run.done < run.steps:
        if run.done == history.cut and not history.lost:
            run.save(checkpoint)
            # What dies has gone on since its checkpoint. These steps are taken again.
            history.lost = [run.step() for _ in range(min(CHECKED, run.steps - run.done))]
            run = make()
            run.load(checkpoint)
        began = time.perf_counter()
        step = run.step()
        history.seconds += time.perf_counter() - began
        history.losses.append(step.loss)
        history.samples += len(step.samples)
        if run.done > history.cut and len(history.again) < len(history.lost):
            history.again.append(step)
        if run.done * tests // run.steps > (run.done - 1) * tests // run.steps:
            run.model.eval()
            with torch.no_grad():
                history.tests.append((run.done, test(run.model)))
            run.model.train()
    if history.lost != history.again:
        raise AssertionError("gone on from its checkpoint, the training was another one")
    return run.model, history


def samples_a_second(loader: Loader, named: Callable[[Batch], list[Any]]) -> float:
    """How many samples a loader hands over when nobody trains on them."""
    began, count, seconds = time.perf_counter(), 0, 0.0
    while seconds < LOADED_SECONDS:
        count += sum(len(named(batch)) for batch in loader)
        seconds = time.perf_counter() - began
    return count / seconds
