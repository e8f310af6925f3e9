"""Decides which configs of Ray Serve applications the store no longer keeps, and removes them with their packages.

What goes: versions that are old and behind the newest ones of their application, and packages of code that no version
names any more. What stays whatever the numbers: the newest version, the one that runs, and the one that a rollback
goes to. Only where it was asked for does an application's history go as a whole, and only if the cluster was made for
a run and so is gone.

A deploy writes its version before it stores the packages that the version names, so a package that no version names is
in nobody's way. One that a deploy begins to use again at this very moment is put back.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rallypoint.frameworks.ray.serve.history import DEPLOYING, FAILED, PACKAGES, ROOT, RUNNING, Version
from rallypoint.frameworks.ray.serve.merge import same
from rallypoint.stages.retention import Part, What

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rallypoint.stages.retention import Policy
    from rallypoint.stages.store import Store

_AT_ONCE = 16  # files that are read at the same time
_VERSION = re.compile(rf"{ROOT}/([^/]+)/([^/]+)/(\d+)\.json")
_PACKAGE = re.compile(rb"_ray_pkg_[0-9a-f]{40}\.(?:zip|whl)")


@dataclass(frozen=True, kw_only=True)
class GoingVersions:
    """What of one application's history goes, as it was found.

    Args:
        folder: Of its versions in the store.
        name: The application and its cluster, in words.
        numbers: The versions that go.
        among: All that there were if the history goes as a whole; empty otherwise.
        parts: What there is to remove.
        problem: Always empty: nothing keeps a version.
    """

    folder: str
    name: str
    numbers: tuple[int, ...]
    among: tuple[int, ...] = ()
    parts: tuple[Part, ...] = ()
    problem: str = ""

    @property
    def size(self) -> int:
        """The bytes of all parts."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class GoingPackages:
    """The packages that no version names once the others are gone.

    Args:
        names: Of their files.
        parts: What there is to remove.
        name: What they are, in words.
        problem: Always empty: nothing keeps a package.
    """

    names: tuple[str, ...]
    parts: tuple[Part, ...] = ()
    name: str = "code for Ray Serve"
    problem: str = ""

    @property
    def size(self) -> int:
        """The bytes of all parts."""
        return sum(part.size for part in self.parts)


def choose_versions(versions: Sequence[Version], policy: Policy, now: float) -> list[int]:
    """Return the numbers of an application's versions that go.

    Args:
        versions: All of them, the newest first.
        policy: What is kept.
        now: Seconds since the epoch.
    """
    if not versions:
        return []
    newest, limit = versions[0], now - policy.older_than.total_seconds()
    old = [each for each in versions if (each.ended or each.created) < limit]
    if policy.forget_stages and newest.temporary and newest.state != DEPLOYING and len(old) == len(versions):
        return [each.number for each in versions]
    keep: object = newest.keep_versions
    if not isinstance(keep, int) or keep < 1:  # None keeps all
        return []
    standing = next((each for each in versions if each.state != FAILED), newest)
    ran = [each for each in versions if each.state == RUNNING and each.config is not None]
    back = next((each for each in ran if not same(each.config, ran[0].config)), newest)
    stays = {each.number for each in (*versions[:keep], standing, *ran[:1], back)}
    return [each.number for each in old if each.number not in stays]


async def survey_deploys(
    store: Store, policy: Policy, *, now: float | None = None
) -> list[GoingVersions | GoingPackages]:
    """Return what would go, changing nothing: of each application its versions, and last the packages.

    Args:
        store: The store.
        policy: What is kept.
        now: Seconds since the epoch; this moment by default.

    Raises:
        StoreError: The store cannot be read.
    """
    moment = time.time() if now is None else now
    files = _Versions(store)
    await files.read()
    found = [
        going
        for folder, sizes in sorted(files.folders().items())
        if (going := _of_application(folder, sizes, files, policy, moment))
    ]
    gone = {f"{going.folder}/{number}.json" for going in found for number in going.numbers}
    named = files.packages(without=gone)
    idle = {
        name: size
        for path, size in await store.list(PACKAGES)
        if _PACKAGE.fullmatch((name := path.rpartition("/")[2]).encode()) and name not in named
    }
    part = Part(what=What.PACKAGES, number=len(idle), size=sum(idle.values()))
    return [*found, *([GoingPackages(names=tuple(idle), parts=(part,))] if idle else [])]


async def remove_deploys(store: Store, going: GoingVersions | GoingPackages) -> int:
    """Remove what `survey_deploys` found, and return how many bytes that were.

    Killed at any point, it leaves applications that can be deployed and rolled back, and the next call goes on.

    Returns:
        0 if a whole history was to go, and the application has been deployed again since.

    Raises:
        StoreError: The store cannot be read or written.
    """
    if isinstance(going, GoingPackages):
        return await _remove_packages(store, going)
    if going.among:
        names = await store.children(going.folder)
        if {int(each) for name in names if (each := name.removesuffix(".json")).isdigit()} != set(going.among):
            return 0
    for number in sorted(going.numbers):  # the newest last: it is what later numbers are counted from
        await store.delete(f"{going.folder}/{number}.json")
    return going.size


async def _remove_packages(store: Store, going: GoingPackages) -> int:
    files, freed = _Versions(store), 0
    await files.read()
    for name in going.names:
        data = None if name in files.packages() else await store.get(f"{PACKAGES}/{name}")
        if data is None:
            continue
        await store.delete(f"{PACKAGES}/{name}")
        await files.read()
        if name in files.packages():  # of a deploy that began meanwhile, and saw the package in its place
            await store.create(f"{PACKAGES}/{name}", data)
            continue
        freed += len(data)
    return freed


class _Versions:
    """The files of all versions. A file's config never changes, so each is read once.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sizes: dict[str, int] = {}
        self._data: dict[str, bytes] = {}

    async def read(self) -> None:
        """Read what is new, and forget what is gone."""
        self._sizes = {path: size for path, size in await self._store.list(ROOT) if _VERSION.fullmatch(path)}
        turn = asyncio.Semaphore(_AT_ONCE)

        async def one(path: str) -> tuple[str, bytes]:
            async with turn:
                return path, await self._store.get(path) or b""

        fresh = await asyncio.gather(*(one(path) for path in self._sizes if path not in self._data))
        self._data = {path: data for path, data in (self._data | dict(fresh)).items() if path in self._sizes}

    def folders(self) -> dict[str, dict[int, int]]:
        """Return the size of each version by its number, by the folder of its application."""
        found: dict[str, dict[int, int]] = {}
        for path, size in self._sizes.items():
            folder, _, name = path.rpartition("/")
            found.setdefault(folder, {})[int(name.removesuffix(".json"))] = size
        return found

    def versions(self, folder: str, numbers: Iterable[int]) -> list[Version]:
        """Return an application's versions that can be read, the newest first."""
        texts = (self._data[f"{folder}/{number}.json"] for number in sorted(numbers, reverse=True))
        return [version for text in texts if (version := Version.from_json(text)) is not None]

    def packages(self, *, without: Iterable[str] = ()) -> set[str]:
        """Return the packages that any file names, also one that cannot be read as a version."""
        left_out = set(without)
        texts = (data for path, data in self._data.items() if path not in left_out)
        return {name.decode() for text in texts for name in _PACKAGE.findall(text)}


def _of_application(
    folder: str, sizes: dict[int, int], files: _Versions, policy: Policy, now: float
) -> GoingVersions | None:
    versions = files.versions(folder, sizes)
    if len(versions) < len(sizes):  # a damaged one may be what runs
        return None
    numbers = choose_versions(versions, policy, now)
    if not numbers:
        return None
    parts = tuple(Part(what=What.VERSIONS, number=number, size=sizes[number]) for number in sorted(numbers))
    among = tuple(sorted(sizes)) if len(numbers) == len(sizes) else ()
    name = f"{versions[0].name} on {versions[0].cluster}"
    return GoingVersions(folder=folder, name=name, numbers=tuple(numbers), among=among, parts=parts)
