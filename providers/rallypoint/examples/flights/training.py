"""Trains the network on every process of a gang, and continues where a checkpoint ends.

The same function runs under torchrun, in a trial of Ray Tune and alone.

How wide, how long and how fast it learns was chosen inside January to October: by the ROC-AUC on September and October,
January and February, and June and July, each pair held out in turn. The test months had no part in it.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rallypoint
from rallypoint.examples.flights.data import read_training_rows
from rallypoint.examples.flights.encoding import Encoder
from rallypoint.examples.flights.features import TARGET
from rallypoint.examples.flights.model import ModelConfig, build_model, probabilities, save_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    import torch

MODEL = "model"  # the artifact, and the folder in every checkpoint
_CHECKPOINT = "checkpoint.pt"
_WARM_UP = 0.15  # of all steps
_AVERAGE_DECAY = 0.99  # a step: the averaged weights look back over about a hundred steps
_SILENCE = timedelta(minutes=5)  # how long a rank waits for the others


def train(  # noqa: PLR0913, PLR0917 - each is a setting that a user may turn
    train_uri: str,
    epochs: int = 6,
    batch_size: int = 4096,
    learning_rate: float = 3e-3,
    width: int = 192,
    depth: int = 2,
    dropout: float = 0.2,
    seed: int = 0,
) -> dict[str, Any]:
    """Train the network; on a retry, go on after the last epoch that was saved.

    Args:
        train_uri: The folder of the training months.
        epochs: How often to go through the rows.
        batch_size: Rows a step, over all ranks together, so that the world size does not change what is learned.
        learning_rate: The highest of the schedule.
        width: Units of the first hidden layer; each further one has half of those before it.
        depth: How many hidden layers.
        dropout: The share of hidden units to drop in training.
        seed: Of the first weights, the order of the rows and the dropout.

    Returns:
        On rank 0 the URI ``model``, the number of ``epochs``, the ``first_epoch`` of this attempt (from 0; equal to
        ``epochs`` if only the model was left to save), the last ``loss`` and ``val_auc``, and the ``history`` of all
        epochs. On the other ranks nothing.

    Raises:
        ValueError: An argument is out of its range, or there are too few rows for so many ranks.
    """
    if epochs < 1 or batch_size < 1:
        msg = f"train(epochs=…, batch_size=…): got {epochs!r} and {batch_size!r}, expected 1 or more of each"
        raise ValueError(msg)
    stage = rallypoint.stage()
    with _process_group() as world:
        fitted, held_out = read_training_rows(train_uri)
        checkpoint = _load(stage.latest_checkpoint())
        encoder = Encoder.from_json(checkpoint["encoder"]) if checkpoint else Encoder.fit(fitted)
        shard = Rows.encode(fitted.iloc[world.rank :: world.size], encoder, len(fitted) // world.size)
        validation = Rows.encode(held_out, encoder) if world.rank == 0 else None
        hidden = tuple(max(1, width >> layer) for layer in range(depth))
        config = ModelConfig(tuple(encoder.cardinalities), shard.numbers.shape[1], hidden, dropout)
        training = Training(encoder, shard, world, config, epochs, batch_size, learning_rate, seed)
        if checkpoint:
            training.load_state(checkpoint)
        first = training.epochs_done
        world.check_agreement(first)
        if world.rank == 0:
            _say_what_begins(first, epochs, len(fitted), len(held_out), world)
        for epoch in range(first, epochs):
            began = time.monotonic()
            loss = training.run_epoch()
            if validation is None:
                continue
            auc = training.validate(validation)
            seconds = time.monotonic() - began
            training.history.append({"epoch": epoch, "loss": loss, "val_auc": auc, "seconds": round(seconds, 1)})
            stage.save_checkpoint(training.save_state, step=epoch + 1)
            stage.report(step=epoch + 1, total=epochs, unit="epoch", loss=loss, val_auc=auc)
            _say(f"epoch {epoch + 1}/{epochs} loss {loss:.4f} val_auc {auc:.4f} ({seconds:.1f} s)")
        if world.rank != 0:
            return {}
        uri = stage.save_artifact(training.save_result, name=MODEL)
        last = training.history[-1]
        return {
            "model": uri,
            "epochs": epochs,
            "first_epoch": first,
            "loss": last["loss"],
            "val_auc": last["val_auc"],
            "history": training.history,
        }


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int

    def check_agreement(self, epochs_done: int) -> None:
        """Fail on every rank if the ranks did not load the same checkpoint."""
        import torch
        import torch.distributed as dist

        seen = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(seen, torch.tensor([epochs_done]))
        found = [int(each) for each in seen]
        if len(set(found)) > 1:
            msg = (
                f"the ranks loaded checkpoints of the epochs {found}, expected one; does every host see the same store"
            )
            raise RuntimeError(msg)


@dataclass(frozen=True)
class Rows:
    """Encoded rows.

    Args:
        codes: int64 of shape (rows, categorical features).
        numbers: float32 of shape (rows, numeric features).
        late: float32 of shape (rows,), 0 or 1.
    """

    codes: torch.Tensor
    numbers: torch.Tensor
    late: torch.Tensor

    @classmethod
    def encode(cls, frame: pd.DataFrame, encoder: Encoder, count: int | None = None) -> Rows:
        """Encode the first `count` rows of a frame, or all."""
        import torch

        frame = frame.iloc[:count]
        codes, numbers = encoder.encode(frame)
        late = torch.from_numpy(frame[TARGET].to_numpy(dtype="float32"))
        return cls(torch.from_numpy(codes), torch.from_numpy(numbers), late)

    def __len__(self) -> int:
        return len(self.late)


class Training:
    """The network, what optimises it, and how far it is.

    Args:
        encoder: How the rows were encoded.
        rows: This rank's rows, as many on every rank: with unequal ones, the rank with most would wait at the end for
            gradients that no other computes.
        world: This process among those that train together.
        config: The network's shape.
        epochs: How many there will be; the learning rate falls to 0 at their end.
        batch_size: Rows a step, over all ranks.
        learning_rate: The highest of the schedule.
        seed: Of everything random.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is one of the run's settings
        self,
        encoder: Encoder,
        rows: Rows,
        world: World,
        config: ModelConfig,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        import torch
        from torch.nn.parallel import DistributedDataParallel
        from torch.optim.swa_utils import AveragedModel

        if not len(rows):
            msg = (
                f"got no row for rank {world.rank} of {world.size}, expected one or more; raise preprocess(fraction=…)"
            )
            raise ValueError(msg)
        self._encoder, self._rows, self._world, self._seed = encoder, rows, world, seed
        self._batch = max(1, batch_size // world.size)
        self.config = config
        torch.manual_seed(seed)
        self._network = DistributedDataParallel(build_model(self.config))
        self._averaged = AveragedModel(self._network.module, avg_fn=_average)
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=learning_rate, weight_decay=0.01)
        steps = epochs * math.ceil(len(rows) / self._batch)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: _rate(step / steps))
        self.epochs_done = 0
        self.history: list[dict[str, Any]] = []

    def run_epoch(self) -> float:
        """Go through all rows once, in an order of this epoch's own, and return the mean loss over all ranks."""
        import torch
        import torch.distributed as dist
        from torch.nn.functional import binary_cross_entropy_with_logits

        # Seeded anew, so that an epoch after a retry draws what it would have drawn without one.
        torch.manual_seed((self._seed * 1_009 + self.epochs_done) * 1_000_003 + self._world.rank)
        total = torch.zeros((), dtype=torch.float64)
        for index in torch.split(torch.randperm(len(self._rows)), self._batch):
            logits = self._network(self._rows.codes[index], self._rows.numbers[index])
            loss: Any = binary_cross_entropy_with_logits(logits, self._rows.late[index])
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._scheduler.step()
            self._averaged.update_parameters(self._network.module)
            total += loss.detach() * len(index)
        dist.all_reduce(total)
        self.epochs_done += 1
        return float(total) / (len(self._rows) * self._world.size)

    def validate(self, rows: Rows) -> float:
        """Return the ROC-AUC of the averaged weights."""
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(rows.late.numpy(), probabilities(self._averaged.module, rows.codes, rows.numbers)))

    def save_state(self, folder: str) -> None:
        """Write all that another process needs to go on with the next epoch, and in `model` the model as it is."""
        import torch

        state = {
            "model": self._network.module.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "epochs_done": self.epochs_done,
            "history": self.history,
            "encoder": self._encoder.to_json(),
        }
        torch.save(state, Path(folder) / _CHECKPOINT)
        model = Path(folder) / MODEL
        model.mkdir()
        self._save_model(model)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `save_state` wrote."""
        self._network.module.load_state_dict(state["model"])
        self._averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self.epochs_done, self.history = state["epochs_done"], state["history"]

    def save_result(self, folder: str) -> None:
        """Write the averaged weights as the model."""
        self._save_model(Path(folder))

    def _save_model(self, folder: Path) -> None:
        weights = self._averaged.module.state_dict()
        save_model(str(folder), weights, self.config, self._encoder, epochs=self.epochs_done, history=self.history)


def _load(folder: str | None) -> dict[str, Any] | None:
    import torch

    return torch.load(Path(folder) / _CHECKPOINT, weights_only=True) if folder else None


def _average(average: torch.Tensor, current: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """Return an exponential moving average that looks back less while there is little to look back on."""
    decay = min(_AVERAGE_DECAY, (1 + int(count)) / (10 + int(count)))
    return average.lerp(current, 1 - decay)


def _rate(progress: float) -> float:
    """Return the share of the highest learning rate after a share of all steps: up in a line, down in a cosine."""
    if progress < _WARM_UP:
        return max(0.01, progress / _WARM_UP)
    # Beyond 1 if an elastic gang came back smaller, whose epochs have more steps.
    return (1 + math.cos(math.pi * min(1.0, (progress - _WARM_UP) / (1 - _WARM_UP)))) / 2


@contextlib.contextmanager
def _process_group() -> Iterator[World]:
    """Join the others over gloo, as torchrun's environment says, unless Ray Train has; without any, be alone."""
    import torch.distributed as dist

    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size())
        return
    if "RANK" in os.environ:
        dist.init_process_group("gloo", timeout=_SILENCE)
    else:
        alone: Any = vars(dist)["HashStore"]()  # public, though the stubs do not export it
        dist.init_process_group("gloo", store=alone, rank=0, world_size=1, timeout=_SILENCE)
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _say_what_begins(first: int, epochs: int, rows: int, held_out: int, world: World) -> None:
    how = f"going on with epoch {first + 1}" if first else "starting with epoch 1"
    _say(f"{how} of {epochs}: {rows:,} rows on {world.size} ranks, {held_out:,} rows to validate with")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the stage's log
