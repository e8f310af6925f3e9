"""The same training in TensorFlow: a custom loop under any strategy of ``tf.distribute``, and what it is held against.

Features, encoding, the network's shape and the schedule are those of `rallypoint.examples.flights.training`.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rallypoint
from rallypoint.examples.flights.data import read_partitions, read_training_rows
from rallypoint.examples.flights.encoding import Encoder
from rallypoint.examples.flights.evaluation import logistic_regression, scores
from rallypoint.examples.flights.features import TARGET
from rallypoint.examples.flights.model import ModelConfig, SavedModel

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_STATE, _CONFIG = "state.npz", "config.json"
_WARM_UP = 0.15  # of all steps
_AVERAGE_DECAY = 0.99  # a step
_AT_ONCE = 16_384  # rows


def train_tensorflow(  # noqa: PLR0913, PLR0917 - each is a setting that a user may turn
    strategy: Any,
    train_uri: str,
    test_uri: str,
    epochs: int = 6,
    batch_size: int = 4096,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> dict[str, Any]:
    """Train the network under a strategy; on a retry, go on after the last epoch that was saved.

    Args:
        strategy: The strategy; the stage makes it. Every process computes one replica.
        train_uri: The folder of the training months.
        test_uri: The folder of the test months.
        epochs: How often to go through the rows.
        batch_size: Rows a step, over all workers together.
        learning_rate: The highest of the schedule.
        seed: Of the first weights, the order of the rows and the dropout.

    Returns:
        On rank 0 the URI ``model`` (a SavedModel, its weights and its config), the number of ``epochs``, the
        ``first_epoch`` of this attempt, the last ``loss`` and ``val_auc``, the ``history`` of all epochs, and ``test``:
        ``roc_auc``, ``log_loss`` and ``brier`` on the test months. On the other ranks nothing.

    Raises:
        ValueError: An argument is out of its range.
    """
    if epochs < 1 or batch_size < 1:
        msg = f"train_tensorflow(epochs=…, batch_size=…): got {epochs!r} and {batch_size!r}, expected 1 or more of each"
        raise ValueError(msg)
    stage = rallypoint.stage()
    fitted, held_out = read_training_rows(train_uri)
    checkpoint = _load(stage.latest_checkpoint())
    encoder = Encoder.from_json(checkpoint["encoder"]) if checkpoint else Encoder.fit(fitted)
    rows = len(fitted) // stage.world_size  # as many on every worker: each step needs all of them
    shard = fitted.iloc[stage.rank :: stage.world_size].iloc[:rows]
    training = Training(strategy, encoder, shard, epochs, max(1, batch_size // stage.world_size), learning_rate, seed)
    if checkpoint:
        training.load_state(checkpoint)
    first = training.epochs_done
    for epoch in range(first, epochs):
        began = time.monotonic()
        loss = training.run_epoch()
        if stage.rank != 0:
            continue
        auc = scores(held_out[TARGET].to_numpy(), training.predict(held_out))["roc_auc"]
        seconds = round(time.monotonic() - began, 1)
        training.history.append({"epoch": epoch, "loss": loss, "val_auc": auc, "seconds": seconds})
        stage.save_checkpoint(training.save_state, step=epoch + 1)
        stage.report(step=epoch + 1, total=epochs, unit="epoch", loss=loss, val_auc=auc)
        print(f"epoch {epoch + 1}/{epochs} loss {loss:.4f} val_auc {auc:.4f} ({seconds} s)", flush=True)  # noqa: T201 - the log
    if stage.rank != 0:
        return {}
    test = read_partitions(test_uri)
    last = training.history[-1]
    return {
        "model": stage.save_artifact(training.save_model, name="model"),
        "epochs": epochs,
        "first_epoch": first,
        "loss": last["loss"],
        "val_auc": last["val_auc"],
        "history": training.history,
        "test": scores(test[TARGET].to_numpy(), training.predict(test)),
    }


def compare_tensorflow(
    trained: dict[str, Any], torch_model_uri: str, train_uri: str, test_uri: str, margin: float = 0.005
) -> dict[str, Any]:
    """Hold what `train_tensorflow` returned against the network of `train` and a logistic regression on the same rows.

    Args:
        trained: Its result.
        torch_model_uri: The artifact that `train` saved.
        train_uri: The folder of the training months.
        test_uri: The folder of the test months.
        margin: How far below the baseline's ROC-AUC the model's may be.

    Returns:
        ``tensorflow``, ``torch`` and ``baseline`` with ``roc_auc``, ``log_loss`` and ``brier`` each on the test months,
        and ``passed``, which is True.

    Raises:
        ValueError: The ROC-AUC of TensorFlow's model is below the baseline's by more than the margin.
    """
    fitted, _ = read_training_rows(train_uri)
    test = read_partitions(test_uri)
    late = test[TARGET].to_numpy()
    table = {
        "tensorflow": trained["test"],
        "torch": scores(late, SavedModel.load(torch_model_uri).predict(test)),
        "baseline": scores(late, logistic_regression(fitted, test, Encoder.fit(fitted))),
    }
    for name, values in table.items():
        print(f"{name:10}", "  ".join(f"{metric} {value:.4f}" for metric, value in values.items()))  # noqa: T201 - the log
    aucs: dict[str, Any] = {f"{name}_roc_auc": values["roc_auc"] for name, values in table.items()}
    rallypoint.stage().report(**aucs)
    model, baseline = table["tensorflow"]["roc_auc"], table["baseline"]["roc_auc"]
    if model < baseline - margin:
        msg = (
            f"the model's ROC-AUC {model:.3f} is below the baseline's {baseline:.3f} minus {margin:g}, expected at "
            f"least {baseline - margin:.3f}; train longer, or on more rows"
        )
        raise ValueError(msg)
    return {**table, "passed": True}


def build_keras_model(config: ModelConfig) -> Any:
    """Return a new network of Keras: it takes codes and numbers, and returns the logit of being late.

    Args:
        config: Its shape, as of the network of PyTorch.
    """
    import keras

    codes = keras.Input((len(config.cardinalities),), dtype="int64", name="codes")
    numbers = keras.Input((config.numbers,), dtype="float32", name="numbers")
    embedded = [
        keras.layers.Embedding(size, min(16, 2 + int(size**0.5)), embeddings_initializer=_normal(index))(
            codes[:, index]
        )
        for index, size in enumerate(config.cardinalities)
    ]
    hidden = keras.layers.Dropout(config.input_dropout)(keras.layers.Concatenate()([*embedded, numbers]))
    for units in config.hidden:
        hidden = keras.layers.Dropout(config.dropout)(keras.layers.Dense(units, activation="silu")(hidden))
    return keras.Model([codes, numbers], keras.layers.Dense(1)(hidden)[:, 0])


def _normal(index: int) -> Any:
    import keras

    return keras.initializers.RandomNormal(stddev=0.05, seed=index)  # a rare value starts near no opinion


class Training:
    """The network, what optimises it, and how far it is.

    Args:
        strategy: The strategy.
        encoder: How the rows are encoded.
        rows: This worker's rows.
        epochs: How many there will be; the learning rate falls to 0 at their end.
        batch: Rows a step, of this worker.
        learning_rate: The highest of the schedule.
        seed: Of everything random.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is one of the run's settings
        self,
        strategy: Any,
        encoder: Encoder,
        rows: pd.DataFrame,
        epochs: int,
        batch: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        import keras

        self._strategy, self._encoder, self._batch, self._seed = strategy, encoder, batch, seed
        self._highest = learning_rate
        codes, numbers = encoder.encode(rows)
        self._rows = (codes, numbers, rows[TARGET].to_numpy(dtype="float32"))
        self._steps = epochs * math.ceil(len(rows) / batch)
        self.config = ModelConfig(tuple(encoder.cardinalities), numbers.shape[1])
        keras.utils.set_random_seed(seed)  # every worker starts from the same weights
        with strategy.scope():
            self._model = build_keras_model(self.config)
            self._optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=0.01)
            self._optimizer.build(self._model.trainable_variables)
        # The averaged weights are of no strategy: rank 0 predicts with them alone.
        self._averaged = build_keras_model(self.config)
        self._averaged.set_weights(self._model.get_weights())
        self._average = self._averaged.get_weights()
        self._step = self._compiled_step()
        self.steps_done = 0
        self.epochs_done = 0
        self.history: list[dict[str, Any]] = []

    def _compiled_step(self) -> Any:
        import tensorflow as tf

        replicas = self._strategy.num_replicas_in_sync

        def replica(codes: Any, numbers: Any, late: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = self._model([codes, numbers], training=True)
                loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(late, logits))
                share = loss / replicas  # the optimizer adds up the gradients of all replicas
            gradients = tape.gradient(share, self._model.trainable_variables)
            self._optimizer.apply(gradients, self._model.trainable_variables)
            return loss

        def step(codes: Any, numbers: Any, late: Any) -> Any:
            return self._strategy.reduce("MEAN", self._strategy.run(replica, args=(codes, numbers, late)), axis=None)

        signature = [tf.TensorSpec([None, len(self.config.cardinalities)], tf.int64)]
        signature += [tf.TensorSpec([None, self.config.numbers], tf.float32), tf.TensorSpec([None], tf.float32)]
        return tf.function(step, input_signature=signature, autograph=False)  # there is no control flow to translate

    def run_epoch(self) -> float:
        """Go through all rows once, in an order of this epoch's own, and return the mean loss over all workers."""
        import numpy as np
        import tensorflow as tf

        # Seeded anew, so that an epoch after a retry has the order that it would have had without one.
        order = np.random.default_rng([self._seed, self.epochs_done, rallypoint.stage().rank]).permutation(
            len(self._rows[0])
        )
        total, leads = 0.0, rallypoint.stage().rank == 0
        for start in range(0, len(order), self._batch):
            index = order[start : start + self._batch]
            self._optimizer.learning_rate = self._highest * _rate(self.steps_done / self._steps)
            loss = self._step(*(tf.convert_to_tensor(each[index]) for each in self._rows))
            total += float(loss) * len(index)
            self.steps_done += 1
            if leads:
                self._take_average()
        self.epochs_done += 1
        return total / len(order)

    def _take_average(self) -> None:
        """Move the averaged weights towards the present ones, less while there is little to look back on."""
        decay = min(_AVERAGE_DECAY, (1 + self.steps_done) / (10 + self.steps_done))
        now = self._model.get_weights()
        self._average = [old + (new - old) * (1 - decay) for old, new in zip(self._average, now, strict=True)]

    def predict(self, frame: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Return the probability of being late for each row, by the averaged weights."""
        import numpy as np
        import tensorflow as tf

        self._averaged.set_weights(self._average)
        codes, numbers = self._encoder.encode(frame)
        parts = [
            tf.sigmoid(self._averaged([codes[at : at + _AT_ONCE], numbers[at : at + _AT_ONCE]], training=False)).numpy()
            for at in range(0, len(codes), _AT_ONCE)
        ]
        return np.concatenate(parts)

    def save_state(self, folder: str) -> None:
        """Write all that another process needs to go on with the next epoch."""
        import numpy as np

        state = {"model": self._model.get_weights(), "average": self._average}
        state["optimizer"] = [np.asarray(variable) for variable in self._optimizer.variables]
        named = {f"{name}-{index:03d}": value for name, values in state.items() for index, value in enumerate(values)}
        np.savez(Path(folder) / _STATE, **named)
        facts = {"epochs_done": self.epochs_done, "steps_done": self.steps_done, "history": self.history}
        (Path(folder) / _CONFIG).write_text(json.dumps({**facts, "encoder": self._encoder.to_json()}), encoding="utf-8")

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `save_state` wrote."""
        self._model.set_weights(state["model"])
        self._average = state["average"]
        for variable, value in zip(self._optimizer.variables, state["optimizer"], strict=True):
            variable.assign(value)
        self.epochs_done, self.steps_done = state["epochs_done"], state["steps_done"]
        self.history = state["history"]

    def save_model(self, folder: str) -> None:
        """Write the averaged weights as a SavedModel, with the config that says how to encode its inputs."""
        self._averaged.set_weights(self._average)
        self._averaged.export(str(Path(folder) / "saved_model"), verbose=False)
        config = {"model": asdict(self.config), "encoder": self._encoder.to_json(), "history": self.history}
        (Path(folder) / _CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")


def _load(folder: str | None) -> dict[str, Any] | None:
    import numpy as np

    if folder is None:
        return None
    state: dict[str, Any] = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8"))
    with np.load(Path(folder) / _STATE) as saved:
        for name in sorted(saved.files):
            state.setdefault(name.rpartition("-")[0], []).append(saved[name])
    return state


def _rate(progress: float) -> float:
    """Return the share of the highest learning rate after a share of all steps: up in a line, down in a cosine."""
    if progress < _WARM_UP:
        return max(0.01, progress / _WARM_UP)
    return (1 + math.cos(math.pi * min(1.0, (progress - _WARM_UP) / (1 - _WARM_UP)))) / 2
