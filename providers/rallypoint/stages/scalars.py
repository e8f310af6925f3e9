"""Reads the scalars of TensorBoard's event files: only what is new, within bounds, without TensorFlow or TensorBoard.

An event file is a sequence of TFRecords: a length, a checksum of it, a serialised ``Event`` message and a checksum of
that. The checksums are CRC-32C, masked as in "TFRecord and tf.train.Example" of the TensorFlow documentation. The files
come from a job: what is no record, or no scalar, is left out, and nothing that they hold is run.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, TypeAlias

from rallypoint.stages.curves import Curves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rallypoint.stages.store import Store

_Message: TypeAlias = "dict[int, list[int | bytes]]"

BUDGET = 2 << 20  # bytes of records read in one call: some 0.3 s of parsing
MAX_FILES = 200
_CHUNK = 1 << 20  # bytes read at a time
_MAX_RECORD = 1 << 16  # bytes of a record that is looked into: scalars take a hundred, graphs and pictures more
_HEADER, _FOOTER = 12, 4  # bytes around a record's data
_MASK = 0xA282EAD8
_MAX_VARINT = 10  # bytes
_MAX_FIELDS = 1000  # of one message
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
# Fields of TensorFlow's messages by number.
_EVENT_STEP, _EVENT_SUMMARY, _SUMMARY_VALUE = 2, 5, 1
_VALUE_TAG, _VALUE_SIMPLE, _VALUE_TENSOR, _VALUE_METADATA = 1, 2, 8, 9
_METADATA_PLUGIN, _PLUGIN_NAME = 1, 1
_TENSOR_TYPE, _TENSOR_CONTENT = 1, 4
# Of a tensor: the type's number, its struct format, and the field in which values stand one by one.
_TYPES = {1: ("f", 5), 2: ("d", 6), 3: ("i", 7), 4: ("B", 7), 5: ("h", 7), 6: ("b", 7), 9: ("q", 10), 19: ("e", 13)}


class ScalarReader:
    """Reads the scalars of the event files below a prefix, from where it stopped the last time.

    Args:
        store: The store.
        prefix: The folder of the event files; a subfolder is a run of its own, as in TensorBoard.

    Attributes:
        curves: What was read: a curve for each tag, and of a run in a subfolder with its name.
        files: How many event files there are.
        behind: Bytes that are there and were not read, because one call reads a bounded amount.
        broken: Names of files that hold something else than records; they are not read any further.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self.curves = Curves()
        self.files = 0
        self.behind = 0
        self.broken: set[str] = set()
        self._store = store
        self._prefix = prefix
        self._offsets: dict[str, int] = {}

    async def read(self) -> None:
        """Take in what is new, up to a bounded amount; a record that is not whole yet is left for the next call.

        Raises:
            StoreError: The store cannot be read.
        """
        found = [(path, size) for path, size in await self._store.list(self._prefix) if "tfevents" in _name(path)]
        self.files = len(found)
        budget, self.behind = BUDGET, 0
        for path, size in found[:MAX_FILES]:
            budget = await self._read_file(path, size, budget)

    async def _read_file(self, path: str, size: int, budget: int) -> int:
        """Read one file, and return what is left of the budget."""
        run = path[len(self._prefix) :].strip("/").rpartition("/")[0]
        while path not in self.broken and (start := self._offsets.get(path, 0)) < size:
            if budget <= 0:
                self.behind += size - start
                break
            data = await self._store.read_from(path, start, min(_CHUNK, size - start))
            taken = await asyncio.to_thread(self._take, path, run, data)
            self._offsets[path] = start + taken
            budget -= len(data)
            if not taken:
                break  # a record that is still being written
        return budget

    def _take(self, path: str, run: str, data: bytes) -> int:
        """Take in the records of a chunk, and return how far it goes; past its end, where a record is skipped."""
        at = 0
        while len(data) - at >= _HEADER:
            length, checksum = struct.unpack_from("<QI", data, at)
            if masked_crc(data[at : at + 8]) != checksum:
                self.broken.add(path)
                return at
            after = at + _HEADER + length + _FOOTER
            if length <= _MAX_RECORD:
                if after > len(data):
                    return at
                self._take_record(run, data[at + _HEADER : after - _FOOTER], data[after - _FOOTER : after])
            at = after
        return at

    def _take_record(self, run: str, record: bytes, checksum: bytes) -> None:
        if masked_crc(record) != int.from_bytes(checksum, "little"):
            return
        try:
            for tag, step, value in scalars(record, known=lambda tag: _title(run, tag) in self.curves):
                self.curves.add(_title(run, tag), step, value)
        except (ValueError, IndexError, struct.error):
            return  # no event; where the next record begins is known


def scalars(record: bytes, *, known: Callable[[str], bool] = lambda _: False) -> Iterator[tuple[str, int, float]]:
    """Yield tag, step and value of each scalar in a serialised ``Event``.

    Args:
        record: The message.
        known: Says of a tag whether it is a scalar's: only the first value of a tag has to tell.

    Raises:
        ValueError: This is no such message; `IndexError` and `struct.error` say the same.
    """
    event = _message(record)
    step = next((_signed(value) for value in event.get(_EVENT_STEP, []) if isinstance(value, int)), 0)
    for summary in _parts(event, _EVENT_SUMMARY):
        for value in map(_message, _parts(_message(summary), _SUMMARY_VALUE)):
            tag, plugin = _text(value, _VALUE_TAG), _plugin(value)
            for simple in _parts(value, _VALUE_SIMPLE):
                yield tag, step, struct.unpack("<f", simple)[0]
            if plugin == "scalars" or (not plugin and known(tag)):
                for tensor in _parts(value, _VALUE_TENSOR):
                    if (number := _number(_message(tensor))) is not None:
                        yield tag, step, number


def _plugin(value: _Message) -> str:
    """Return the name of the TensorBoard plugin that a summary's value is for; the empty string if it does not say."""
    for metadata in _parts(value, _VALUE_METADATA):
        for plugin in _parts(_message(metadata), _METADATA_PLUGIN):
            return _text(_message(plugin), _PLUGIN_NAME)
    return ""


def _number(tensor: _Message) -> float | None:
    """Return the one number of a ``TensorProto``; None if it holds anything else."""
    kind = next(iter(tensor.get(_TENSOR_TYPE, [])), 0)
    if kind not in _TYPES:
        return None
    form, listed = _TYPES[int(kind)]
    size = struct.calcsize(f"<{form}")
    for raw in _parts(tensor, _TENSOR_CONTENT):
        return float(struct.unpack(f"<{form}", raw)[0]) if len(raw) == size else None
    values = tensor.get(listed, [])
    if len(values) != 1:
        return None
    value = values[0]
    if form in "fd":
        is_one = isinstance(value, bytes) and len(value) == size
        return float(struct.unpack(f"<{form}", value)[0]) if is_one else None  # type: ignore[arg-type]  # it is bytes
    if isinstance(value, bytes):  # packed
        value, end = _varint(value, 0)
        if end != len(values[0]):  # type: ignore[arg-type]  # it is bytes
            return None
    return float(struct.unpack("<e", struct.pack("<H", value & 0xFFFF))[0]) if form == "e" else float(_signed(value))


def _message(data: bytes) -> _Message:
    """Return the fields of a serialised message by number: numbers, and bytes of everything that is no varint."""
    fields: _Message = {}
    at = count = 0
    while at < len(data):
        count += 1
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            fields.setdefault(key >> 3, []).append(value)
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            length = -1
        if length < 0 or at + length > len(data) or count > _MAX_FIELDS:
            msg = "got bytes that are no message of a thousand fields at the most"
            raise ValueError(msg)
        fields.setdefault(key >> 3, []).append(data[at : at + length])
        at += length
    return fields


def _parts(message: _Message, number: int) -> Iterator[bytes]:
    return (value for value in message.get(number, []) if isinstance(value, bytes))


def _text(message: _Message, number: int) -> str:
    return next((value.decode("utf-8", "replace") for value in _parts(message, number)), "")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count in range(_MAX_VARINT):
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that another byte follows
            return value, at + count + 1
    msg = f"got a number of more than {_MAX_VARINT} bytes"
    raise ValueError(msg)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _title(run: str, tag: str) -> str:
    return f"{tag} ({run})" if run else tag


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC = _crc_table()


def masked_crc(data: bytes) -> int:
    """Return the CRC-32C of data, masked as TFRecords have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF
