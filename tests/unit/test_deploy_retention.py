"""Which configs of applications go, and that no package goes that a version names."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from rallypoint.frameworks.deploy.records import open_records
from rallypoint.frameworks.ray.serve.history import DEPLOYING, FAILED, PACKAGES, REMOVED, RUNNING, History, Version
from rallypoint.stages.deploy_retention import GoingPackages, GoingVersions, choose_versions
from rallypoint.stages.prune import remove, survey
from rallypoint.stages.retention import Policy
from rallypoint.stages.store import Store

DAY = 86_400.0
NOW = 1_000 * DAY
OLD, NEW = NOW - 40 * DAY, NOW - 2 * DAY
MONTH = timedelta(days=30)


def package(letter):
    return f"_ray_pkg_{letter * 40}.zip"


def config(text, *letters):
    modules = {"runtime_env": {"py_modules": [f"gcs://{package(letter)}" for letter in letters]}} if letters else {}
    return {"name": "a", "import_path": f"m:{text}", "route_prefix": "/", **modules}


def versions(*states, ended=OLD, keep=2, temporary=False, texts=None):
    """The newest first, each with a config of its own unless texts say otherwise."""
    made = [
        Version(
            number=number,
            name="a",
            cluster="c",
            action="deploy",
            config=None if state == REMOVED else config((texts or {}).get(number, f"v{number}")),
            previous=None,
            state=state,
            keep_versions=keep,
            temporary=temporary,
            created=ended,
            ended=None if state == DEPLOYING else ended,
        )
        for number, state in enumerate(states, 1)
    ]
    return made[::-1]


def gone(found, **more):
    return sorted(choose_versions(found, Policy(**{"older_than": MONTH, **more}), NOW))


# The decision --------------------------------------------------------------------------------------------------------


def test_as_many_of_the_newest_stay_as_the_newest_one_says():
    assert gone(versions(RUNNING, RUNNING, RUNNING, RUNNING)) == [1, 2]
    assert gone(versions(RUNNING, RUNNING, RUNNING, RUNNING, keep=4)) == []
    assert gone(versions(RUNNING, RUNNING, RUNNING, RUNNING, keep=None)) == []
    assert gone(versions(RUNNING, RUNNING, RUNNING, keep="two")) == []  # somebody else's file
    assert gone([]) == []


def test_nothing_goes_that_is_young():
    assert gone(versions(RUNNING, RUNNING, RUNNING, RUNNING, ended=NEW)) == []


def test_failures_do_not_push_out_what_runs_nor_what_a_rollback_goes_to():
    assert gone(versions(RUNNING, RUNNING, RUNNING, FAILED, FAILED, FAILED)) == [1, 4]
    assert gone(versions(RUNNING, RUNNING, FAILED, FAILED, REMOVED, FAILED, FAILED)) == [3, 4]


def test_a_rollback_goes_to_the_newest_config_that_is_another_one():
    same = dict.fromkeys((2, 3, 4), "same")
    assert gone(versions(RUNNING, RUNNING, RUNNING, RUNNING, texts=same, keep=1)) == [2, 3]


def test_a_deploy_that_began_and_never_ended_is_the_newest_or_goes_with_the_old_ones():
    assert gone(versions(DEPLOYING, RUNNING, RUNNING, DEPLOYING, keep=1)) == [1]


@pytest.mark.parametrize(
    ("state", "temporary", "forget", "whole"),
    [
        (RUNNING, True, True, True),
        (FAILED, True, True, True),
        (RUNNING, True, False, False),
        (RUNNING, False, True, False),
        (DEPLOYING, True, True, False),
    ],
)
def test_a_history_goes_as_a_whole_only_of_a_cluster_that_was_made_for_a_run_and_if_asked(
    state, temporary, forget, whole
):
    found = versions(RUNNING, state, temporary=temporary)
    assert gone(found, forget_stages=forget) == ([1, 2] if whole else [])
    assert gone([*versions(RUNNING, RUNNING, RUNNING, temporary=True, ended=NEW)[:1], *found[1:]]) == []


# The doing -----------------------------------------------------------------------------------------------------------


class World:
    """A store with applications that were deployed forty days ago."""

    def __init__(self, store, records):
        self.store, self.records = store, records

    def deploy(self, text, *letters, name="a", state=RUNNING, **more):
        history = History(self.records, "c", name)
        fields = {"action": "deploy", "previous": None, "keep_versions": 1, "created": OLD, **more}
        version = history.begin(config=config(text, *letters), **fields)
        for letter in letters:
            self.records.create(f"{PACKAGES}/{package(letter)}", letter.encode() * 100)
        done = history.finish(version, state=state)
        self.records.write(f"{history.folder}/{done.number}.json", _aged(done).to_json())
        return history

    def packages(self):
        return sorted(name[len("_ray_pkg_")] for name in self.records.names(PACKAGES))

    async def prune(self, **more):
        policy = Policy(**{"older_than": MONTH, **more})
        return [(going, await remove(self.store, going)) for going in await survey(self.store, policy, now=NOW)]


def _aged(version):
    return replace(version, ended=OLD)


@pytest.fixture(params=["folder", "bucket"])
def world(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return World(Store.open(tmp_path / "store"), open_records((tmp_path / "store").as_uri()))
    uri, options = request.getfixturevalue("s3_store_uri")
    for name in ("access_key_id", "secret_access_key"):
        monkeypatch.setenv(f"AWS_{name.upper()}", options[f"aws_{name}"])
    for name in ("region", "endpoint_url"):
        monkeypatch.setenv(f"AWS_{name.upper()}", options[name])
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    return World(Store.open(uri, options=options), open_records(uri))


async def test_old_versions_go_with_the_packages_that_no_other_one_names(world):
    history = world.deploy("one", "a", "b")
    world.deploy("two", "b", "c")
    world.deploy("three", "c", "d")
    world.deploy("other", "e", name="b")
    (versions_, freed), (packages, more) = await world.prune()
    assert (versions_.name, versions_.numbers, packages.names) == ("a on c", (1,), (package("a"),))
    assert (freed, more) == (versions_.size, 100)
    assert [version.number for version in history.versions()] == [3, 2]
    assert world.packages() == ["b", "c", "d", "e"]
    assert await world.prune() == []


async def test_what_would_go_is_shown_and_stays(world):
    history = world.deploy("one", "a")
    world.deploy("two")
    world.deploy("three")
    kinds = [type(going) for going in await survey(world.store, Policy(older_than=MONTH), now=NOW)]
    assert kinds == [GoingVersions, GoingPackages]
    assert len(list(history.versions())) == 3
    assert world.packages() == ["a"]


async def test_a_damaged_version_keeps_its_application_and_what_it_names(world):
    history = world.deploy("one", "a")
    world.deploy("two")
    world.deploy("three")
    torn = f'{{"number": 4, "config": {{"py_modules": ["gcs://{package("f")}", '
    world.records.write(f"{history.folder}/4.json", torn.encode())
    world.records.write(f"{PACKAGES}/{package('f')}", b"f")
    assert await world.prune() == []


async def test_a_history_that_is_to_go_whole_stays_if_the_application_was_deployed_again(world):
    history = world.deploy("one", "a", temporary=True)
    found = await survey(world.store, Policy(older_than=MONTH, forget_stages=True), now=NOW)
    world.deploy("two", "a", temporary=True)
    assert [await remove(world.store, going) for going in found] == [0, 0]
    assert [version.number for version in history.versions()] == [2, 1]
    assert world.packages() == ["a"]


async def test_a_history_of_a_cluster_that_is_gone_goes_whole(world):
    history = world.deploy("one", "a", temporary=True)
    world.deploy("two", "b", temporary=True)
    await world.prune(forget_stages=True)
    assert list(history.versions()) == []
    assert world.packages() == []


async def test_a_package_that_a_deploy_takes_at_this_very_moment_is_put_back(world, monkeypatch):
    world.records.create(f"{PACKAGES}/{package('a')}", b"a" * 100)
    real = Store.delete

    async def deletes_while_a_deploy_begins(store, path):
        world.deploy("one", "a")
        await real(store, path)

    monkeypatch.setattr(Store, "delete", deletes_while_a_deploy_begins)
    ((going, freed),) = await world.prune()
    assert (going.names, freed) == ((package("a"),), 0)
    assert world.packages() == ["a"]


async def test_the_copy_that_is_just_being_written_is_nobodys_package(world):
    world.records.write(f"{PACKAGES}/{package('a')}.0123abcd", b"half")
    assert await world.prune() == []


async def test_only_stages_are_looked_at_where_one_is_named(world):
    from rallypoint.errors import StageNotFoundError

    world.deploy("one")
    world.deploy("two")
    world.deploy("three")
    with pytest.raises(StageNotFoundError):
        await survey(world.store, Policy(older_than=MONTH), stage="a", now=NOW)
