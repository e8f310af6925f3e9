"""Opens a TensorBoard on what a stage has written for it, on this machine only."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.cli.terminal import say
from rallypoint.errors import StageNotFoundError
from rallypoint.stages.history import tensorboard_prefix
from rallypoint.worker.process import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rallypoint.stages.engine import Engine
    from rallypoint.stages.store import Store

HOST = "127.0.0.1"  # TensorBoard asks nobody for a password
_REFRESH = 5.0  # seconds between two looks at a bucket
_GRACE = 5.0  # seconds that TensorBoard has for its own end
_CHUNK = 4 << 20  # bytes


class NoTensorBoardError(RuntimeError):
    """This Python has no TensorBoard."""


async def open_tensorboard(engine: Engine, number: int, *, port: int) -> int:
    """Run TensorBoard on the event files of an attempt's generation until it ends or this process is asked to.

    Args:
        engine: The stage.
        number: The attempt's number.
        port: The port; 0 for a free one, which TensorBoard prints.

    Returns:
        TensorBoard's exit code; 0 if this process was asked to end.

    Raises:
        NoTensorBoardError: This Python has none.
        StageNotFoundError: The attempt has ended, and its generation has no event files.
    """
    if importlib.util.find_spec("tensorboard") is None:
        msg = f"{sys.executable} has no package 'tensorboard': install tensorboard, and setuptools below 81 with it"
        raise NoTensorBoardError(msg)
    shown = await engine.inspect(number)
    prefix = tensorboard_prefix(engine.ledger, shown.entry.record.generation)
    if not await engine.store.list(prefix):
        where = f"{engine.key.text} has no event files in {engine.store.child_uri(prefix)}"
        if shown.entry.outcome is not None:
            msg = f"{where}: write them to rallypoint.stage().tensorboard_dir"
            raise StageNotFoundError(msg)
        say(f"{where} yet; they are shown as soon as they are there")
    if engine.store.local_path is not None:
        return await _serve(engine.store.local_path / prefix, port)
    with tempfile.TemporaryDirectory(prefix="rallypoint-tensorboard-") as folder:
        copy = _Copy(engine.store, prefix, Path(folder))
        await copy.update()
        following = asyncio.create_task(copy.follow())
        try:
            return await _serve(Path(folder), port)
        finally:
            following.cancel()


async def _serve(folder: Path, port: int) -> int:
    argv = [sys.executable, "-m", __name__, "--logdir", str(folder), "--host", HOST, "--port", str(port)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)  # noqa: ASYNC220 - it starts at once, and is waited for below
    asked = asyncio.Event()
    with _until_asked(asked):
        ending = asyncio.create_task(asked.wait())
        while process.poll() is None and not asked.is_set():
            await asyncio.wait([ending], timeout=0.1)
        ending.cancel()
        if not asked.is_set():
            return process.returncode
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, _GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
    return 0


@contextmanager
def _until_asked(asked: asyncio.Event) -> Iterator[None]:
    """Set an event when this process gets SIGINT or SIGTERM, in the place of what these would do."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class _Copy:
    """A local copy of a bucket's event files, which only grow: what is new is appended."""

    def __init__(self, store: Store, prefix: str, folder: Path) -> None:
        self._store = store
        self._prefix = prefix
        self._folder = folder
        self._sizes: dict[str, int] = {}

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH)
            try:
                await self.update()
            except Exception as error:  # noqa: BLE001 - what is there is shown; the next look may succeed
                say(f"the bucket was not read, will try again: {error}")

    async def update(self) -> None:
        for path, size in await self._store.list(self._prefix):
            target = self._folder / path[len(self._prefix) :].lstrip("/")
            if not target.resolve().is_relative_to(self._folder.resolve()):
                continue  # a name that leads elsewhere: names in a bucket are a job's
            target.parent.mkdir(parents=True, exist_ok=True)
            while (have := self._sizes.get(path, 0)) < size:
                data = await self._store.read_from(path, have, min(_CHUNK, size - have))
                if not data:
                    break
                with target.open("ab") as file:
                    file.write(data)
                self._sizes[path] = have + len(data)


def _main() -> Any:
    """Be TensorBoard, and end with the command that started this process."""
    die_with_parent()
    main: Any = importlib.import_module("tensorboard.main")
    return main.run_main()


if __name__ == "__main__":
    sys.exit(_main())
