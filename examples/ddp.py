"""Two processes train one model on one store, stop in the middle of an epoch, and go on as three.

    python examples/ddp.py OUT

Under torchrun it trains with as many processes as that has started, and goes on from the checkpoint
in OUT where there is one:

    torchrun --standalone --nproc-per-node 2 examples/ddp.py OUT
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import raggedstore as rs
from raggedstore.torch import LoaderDataset
from raggedstore.training import Loader, Shuffled, TokenBudget

SAMPLES, EPOCHS = 300, 3
STOP = 18  # the step after which the first two processes end
CHECKPOINT = "checkpoint.pt"
PITCHES = (0.05, 0.1, 0.2)  # of the tones that are to be told apart, in radians a step


def make_store(path: Path) -> None:
    """Tones of three pitches, all of different lengths."""
    rng = np.random.default_rng(0)
    store = rs.create(
        path,
        {
            "tone": rs.Field("float32", (None,)),
            "pitch": rs.Field("int64"),
            "number": rs.Field("int64"),
        },
    )
    with store.writer() as writer:
        for i in range(SAMPLES):
            steps = np.arange(rng.integers(100, 1000)) + rng.integers(100)
            tone = np.sin(PITCHES[i % 3] * steps) + rng.normal(0, 0.5, len(steps))
            writer.append({"tone": tone.astype("float32"), "pitch": i % 3, "number": i})


class Model(nn.Module):
    """A convolution, the mean over time, and which pitch that was."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv1d(1, 8, 64, 16)
        self.pitch = nn.Linear(8, len(PITCHES))

    def forward(self, tones: Tensor, lengths: Tensor) -> Tensor:
        frames = self.frames(tones[:, None]).relu()
        inside = torch.arange(frames.shape[2]) * 16 + 64 <= lengths[:, None]
        return self.pitch((frames * inside[:, None]).sum(2) / inside.sum(1, keepdim=True))


def train(out: Path, stop: int | None = None) -> None:
    """What each process does: go on from the checkpoint where there is one, up to step `stop`."""
    rank, world = dist.get_rank(), dist.get_world_size()
    # Had somebody committed meanwhile, the processes could be at versions of other numbers of
    # batches, and would wait for one another for ever: all take that of process 0.
    version = [rs.open(out / "corpus").version]
    dist.broadcast_object_list(version)
    loader = Loader(
        rs.open(out / "corpus", version=version[0]),
        order=Shuffled(seed=0, window="200kB"),
        batch=TokenBudget("tone", 8_000),
        rank=rank,
        world_size=world,
        even="pad",  # with a batch more than the others, a process would wait for them for ever
        collate="padded",
    )
    torch.manual_seed(0)
    model = DistributedDataParallel(Model())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    done = 0
    if (out / CHECKPOINT).exists():
        saved = torch.load(out / CHECKPOINT)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])  # one state for all, however many there are
        done = saved["done"]

    while loader.epoch < EPOCHS and done != stop:
        epoch, losses, seen = loader.epoch, [], []
        for batch in LoaderDataset(loader):
            scores = model(batch["tone"], batch["tone_lengths"])
            loss = nn.functional.cross_entropy(scores, batch["pitch"])
            optimizer.zero_grad()
            loss.backward()  # here the processes wait for one another
            optimizer.step()
            losses.append(loss.item())
            seen += batch["number"].tolist()
            done += 1
            if done == stop:
                break
        (out / f"seen-{epoch}-{world}-{rank}.json").write_text(json.dumps(seen))
        if rank == 0 and losses:  # none where the stop was at an epoch's very end
            print(
                f"epoch {epoch}, {world} processes: {len(losses)} steps each, "
                f"loss {losses[0]:.3f} → {losses[-1]:.3f}",
                flush=True,
            )
    if rank == 0:
        state = {
            "model": model.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "loader": loader.state_dict(),
            "done": done,
        }
        torch.save(state, out / CHECKPOINT)
    dist.barrier()


def check(out: Path) -> None:
    """Every sample has come in every epoch, also in that with the break."""
    for epoch in range(EPOCHS):
        parts = [json.loads(path.read_text()) for path in out.glob(f"seen-{epoch}-*.json")]
        came = Counter(number for part in parts for number in part)
        if len(came) != SAMPLES:
            raise AssertionError(f"epoch {epoch} had {len(came)} of {SAMPLES} samples")
        twice = came.total() - SAMPLES
        print(f"epoch {epoch}: all {SAMPLES} samples, {twice} of them twice")


def run(rank: int, world: int, out: Path, stop: int | None) -> None:
    """One of several processes that were started here."""
    meet = f"file://{out}/meet-{world}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    train(out, stop)
    dist.destroy_process_group()


def main(out: Path) -> None:
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if "RANK" in os.environ:  # torchrun has started this process, and the others
        dist.init_process_group("gloo")
        if dist.get_rank() == 0 and not (out / "corpus").exists():
            make_store(out / "corpus")
        dist.barrier()
        train(out)
        dist.destroy_process_group()
        return
    make_store(out / "corpus")
    torch.multiprocessing.spawn(run, (2, out, STOP), nprocs=2)
    print(f"stopped after step {STOP}, going on with 3 processes")
    torch.multiprocessing.spawn(run, (3, out, None), nprocs=3)
    check(out)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "ddp"))
