"""The network: an embedding for each categorical feature, beside the numbers, into a perceptron.

After "Entity Embeddings of Categorical Variables" (Guo and Berkhahn, 2016).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.examples.flights.data import local_path
from rallypoint.examples.flights.encoding import Encoder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

_WEIGHTS = "model.pt"
_CONFIG = "config.json"


@dataclass(frozen=True)
class ModelConfig:
    """The network's shape, as plain data.

    Args:
        cardinalities: How many codes each categorical feature has.
        numbers: How many numeric features there are.
        hidden: The width of each hidden layer.
        dropout: The share of hidden units to drop in training.
        input_dropout: The share of inputs to drop in training.
    """

    cardinalities: tuple[int, ...]
    numbers: int
    hidden: tuple[int, ...] = (192, 96)
    dropout: float = 0.2
    input_dropout: float = 0.1

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ModelConfig:
        """Return the config that `dataclasses.asdict` and JSON made of one."""
        return cls(**{**value, "cardinalities": tuple(value["cardinalities"]), "hidden": tuple(value["hidden"])})


def build_model(config: ModelConfig) -> torch.nn.Module:
    """Return a new network.

    Args:
        config: Its shape.

    Returns:
        A module that takes codes, int64 of shape (rows, categorical features), and numbers, float32 of shape (rows,
        numeric features), and returns the logit of being late, float32 of shape (rows,).
    """
    from torch import Tensor, cat, nn

    class LateFlights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [min(16, 2 + int(each**0.5)) for each in config.cardinalities]
            tables = [nn.Embedding(size, width) for size, width in zip(config.cardinalities, widths, strict=True)]
            for table in tables:
                nn.init.normal_(table.weight, std=0.05)  # a rare value starts near no opinion
            self.embeddings = nn.ModuleList(tables)
            layers: list[nn.Module] = [nn.Dropout(config.input_dropout)]
            width = sum(widths) + config.numbers
            for units in config.hidden:
                layers += [nn.Linear(width, units), nn.SiLU(), nn.Dropout(config.dropout)]
                width = units
            self.perceptron = nn.Sequential(*layers, nn.Linear(width, 1))

        def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
            embedded = [embedding(codes[:, index]) for index, embedding in enumerate(self.embeddings)]
            logits: Tensor = self.perceptron(cat([*embedded, numbers], dim=1))
            return logits.squeeze(1)

    return LateFlights()


def probabilities(
    model: torch.nn.Module, codes: torch.Tensor, numbers: torch.Tensor, *, rows_at_once: int = 16_384
) -> np.ndarray[Any, Any]:
    """Return the probability of being late, float32 of shape (rows,), without dropout.

    Args:
        model: The network; its mode is left as it was.
        codes: int64 of shape (rows, categorical features).
        numbers: float32 of shape (rows, numeric features).
        rows_at_once: How many rows to hold the hidden layers of.
    """
    import torch

    training = model.training
    model.eval()
    with torch.inference_mode():
        batches = zip(torch.split(codes, rows_at_once), torch.split(numbers, rows_at_once), strict=True)
        logits = torch.cat([model(*batch) for batch in batches])
    model.train(training)
    return logits.sigmoid().numpy()


def save_model(
    folder: str, weights: dict[str, torch.Tensor], config: ModelConfig, encoder: Encoder, **facts: Any
) -> None:
    """Write ``model.pt``, which ``torch.load(weights_only=True)`` reads, and ``config.json``.

    Args:
        folder: An empty folder.
        weights: The network's state.
        config: Its shape.
        encoder: How to turn columns into its inputs.
        **facts: More JSON values for the config, such as what it was trained on.
    """
    import torch

    torch.save(weights, Path(folder) / _WEIGHTS)
    text = json.dumps({"model": asdict(config), "encoder": encoder.to_json(), **facts}, indent=1)
    (Path(folder) / _CONFIG).write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class SavedModel:
    """A model that a training stage saved.

    Args:
        network: With its weights.
        encoder: Turns columns into its inputs.
        facts: What else the config says.
    """

    network: torch.nn.Module
    encoder: Encoder
    facts: dict[str, Any]

    @classmethod
    def load(cls, uri: str) -> SavedModel:
        """Load the artifact ``model``.

        Raises:
            FileNotFoundError: There is no model.
            ValueError: The URI is not a file's.
        """
        import torch

        folder = local_path(uri)
        facts = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        network = build_model(ModelConfig.from_json(facts.pop("model")))
        network.load_state_dict(torch.load(folder / _WEIGHTS, weights_only=True))
        return cls(network, Encoder.from_json(facts.pop("encoder")), facts)

    def predict(self, frame: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Return the probability of being late for each row."""
        import torch

        codes, numbers = self.encoder.encode(frame)
        return probabilities(self.network, torch.from_numpy(codes), torch.from_numpy(numbers))
