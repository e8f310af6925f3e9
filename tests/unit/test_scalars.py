"""TensorBoard's event files are read without TensorBoard: what frameworks wrote, what is new, and nothing hostile."""

from __future__ import annotations

import struct

import pytest

from rallypoint.stages import scalars as module
from rallypoint.stages.curves import MAX_CURVES, MAX_POINTS, Curve, Curves
from rallypoint.stages.scalars import ScalarReader, masked_crc
from rallypoint.stages.store import Store

NAME = "events.out.tfevents.1700000000.host.1.0"


def field(number, content):
    """A field of a message: bytes, a whole number, or (as a float) four bytes."""
    if isinstance(content, float):
        return varint(number << 3 | 5) + struct.pack("<f", content)
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def record(data, *, crc=None):
    head = struct.pack("<Q", len(data))
    check = masked_crc(data) if crc is None else crc
    return head + struct.pack("<I", masked_crc(head)) + data + struct.pack("<I", check)


def event(step, tag, value):
    summary = field(1, field(1, tag.encode()) + field(2, float(value)))
    return record(field(2, step) + field(5, summary))


@pytest.fixture
def reader(tmp_path):
    (tmp_path / "data/train").mkdir(parents=True)
    return ScalarReader(Store.open(tmp_path), "data")


@pytest.fixture
def write(tmp_path):
    def append(data, name=NAME):
        with (tmp_path / "data" / name).open("ab") as file:
            file.write(data)

    return append


def points(reader):
    return {curve.name: curve.all_points() for curve in reader.curves.sorted()}


def test_the_checksum_is_the_published_one():
    # CRC-32C of 32 zero bytes is 0x8A9136AA (RFC 3720, B.4); masked as TFRecords have it.
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


async def test_only_what_is_new_is_read_and_a_torn_record_is_left(reader, write):
    whole = event(2, "loss", 0.25)
    write(event(1, "loss", 0.5) + whole[:20])
    await reader.read()
    assert points(reader) == {"loss": [(1, 0.5)]}
    write(whole[20:])
    await reader.read()
    assert points(reader) == {"loss": [(1, 0.5), (2, 0.25)]}


async def test_a_subfolder_is_a_run_of_its_own(reader, write):
    write(event(1, "loss", 0.5), f"train/{NAME}")
    write(event(1, "loss", 0.75))
    await reader.read()
    assert points(reader) == {"loss": [(1, 0.75)], "loss (train)": [(1, 0.5)]}


async def test_a_restart_from_an_earlier_step_takes_the_place_of_what_came_after_it(reader, write):
    write(b"".join(event(step, "loss", 1.0) for step in range(5)))
    write(b"".join(event(step, "loss", 2.0) for step in range(3, 5)), NAME.replace("17", "18"))
    await reader.read()
    assert points(reader)["loss"] == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2)]


async def test_large_records_are_skipped(reader, write):
    write(event(1, "loss", 0.5) + record(bytes(3 << 20)) + event(2, "loss", 0.25))
    await reader.read()
    assert points(reader)["loss"] == [(1, 0.5), (2, 0.25)]


async def test_a_damaged_record_is_left_out_and_the_next_one_is_read(reader, write):
    write(event(1, "loss", 0.5) + record(event(2, "loss", 9.0)[12:-4], crc=1) + event(3, "loss", 0.25))
    await reader.read()
    assert points(reader)["loss"] == [(1, 0.5), (3, 0.25)]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 100,
        struct.pack("<QI", 1 << 62, masked_crc(struct.pack("<Q", 1 << 62))) + b"x" * 100,
        record(b"\xff" * 50),
        record(field(5, b"\x0a\xff\xff\xff\xff\x0f")),
        record(field(5, field(1, field(8, field(1, 1) + field(4, b"123"))))),
        record(b"\x80" * 1000),
    ],
    ids=["no record", "endless", "no message", "a length past its end", "no number", "an endless number"],
)
async def test_hostile_files_end_no_reader(reader, write, data):
    write(data)
    write(event(1, "loss", 0.5), f"train/{NAME}")
    await reader.read()
    assert points(reader) == {"loss (train)": [(1, 0.5)]}


async def test_one_call_reads_a_bounded_amount_and_says_what_is_left(reader, write, monkeypatch):
    monkeypatch.setattr(module, "BUDGET", 4000)
    monkeypatch.setattr(module, "_CHUNK", 1000)
    data = b"".join(event(step, "loss", 0.5) for step in range(200))
    write(data)
    await reader.read()
    assert 0 < reader.behind < len(data)
    while reader.behind:
        await reader.read()
    assert points(reader)["loss"][-1] == (199, 0.5)


async def test_names_are_bounded_and_inert(reader, write):
    write(b"".join(event(1, f"{number:03d}\x1b[2J{'x' * 500}", 0.5) for number in range(MAX_CURVES + 5)))
    await reader.read()
    curves = reader.curves.sorted()
    assert len(curves) == MAX_CURVES
    assert all("\x1b" not in curve.name and len(curve.name) <= 120 for curve in curves)
    assert len(reader.curves.left_out) == 5


def test_many_points_are_thinned_and_the_newest_is_kept():
    curve = Curve("loss")
    for step in range(10 * MAX_POINTS):
        curve.add(step, step / 2)
    found = curve.all_points()
    assert len(found) <= MAX_POINTS + 1
    assert (found[0], found[-1]) == ((0, 0), (10 * MAX_POINTS - 1, (10 * MAX_POINTS - 1) / 2))


def test_what_is_not_finite_is_counted_and_not_drawn():
    curves = Curves()
    for step, value in enumerate((1.0, float("nan"), float("inf"), -1e308, 1e308)):
        curves.add("loss", step, value)
    (curve,) = curves.sorted()
    assert (curve.not_finite, len(curve.all_points())) == (2, 3)
    assert "nan" not in curve.polyline(100, 50)


def test_a_curve_fills_its_picture():
    curve = Curve("loss")
    for step, value in ((0, 1.0), (5, 3.0), (10, 2.0)):
        curve.add(step, value)
    assert curve.polyline(104, 54) == "2.0,52.0 52.0,2.0 102.0,27.0"
    flat = Curve("flat")
    flat.add(7, 1.0)
    assert flat.polyline(104, 54) == "52.0,27.0"


@pytest.mark.engine
async def test_what_torchs_summary_writer_wrote(reader, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "data")) as writer:
        for step in range(5):
            writer.add_scalar("loss", 1 / (step + 1), step)
            writer.add_scalar("accuracy", step / 4, step, new_style=True)
        writer.add_text("note", "no scalar")
        import numpy as np

        writer.add_histogram("weights", np.arange(100.0), 1)
    await reader.read()
    found = points(reader)
    assert found.keys() == {"loss", "accuracy"}
    assert found["loss"] == [(step, pytest.approx(1 / (step + 1))) for step in range(5)]
    assert found["accuracy"] == [(step, step / 4) for step in range(5)]


@pytest.mark.engine
async def test_what_tensorflows_summary_wrote(reader, tmp_path):
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(tmp_path / "data/train"))
    with writer.as_default():
        for step in range(5):
            tf.summary.scalar("epoch_loss", 1 / (step + 1), step)
            tf.summary.scalar("count", tf.constant(step, tf.int64), step)
            tf.summary.histogram("weights", tf.range(10.0), step)
            tf.summary.text("note", "no scalar", step)
            tf.summary.image("picture", tf.zeros([1, 64, 64, 3]), step)
    writer.close()
    await reader.read()
    found = points(reader)
    assert found.keys() == {"epoch_loss (train)", "count (train)"}
    assert found["epoch_loss (train)"] == [(step, pytest.approx(1 / (step + 1))) for step in range(5)]
    assert found["count (train)"] == [(step, step) for step in range(5)]
