"""One application's config among the others': what to write, what counts as the same, what may be kept in clear.

A write replaces the configs of all applications, so each one starts from what the cluster has at that moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.deploy.rest import RefusedError
from rallypoint.frameworks.ray.serve.live import DELETING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rallypoint.frameworks.ray.serve.live import Live

SECRET = "<secret>"  # noqa: S105 - stands where a value is kept nowhere
_REDACTED = "<redacted>"  # what Ray shows instead of values where it takes a client for a browser
_FILLED_IN = frozenset({"logging_config"})  # what Serve adds to an application's config by itself


class NotOursError(RuntimeError):
    """The application was deployed in a way that cannot be restored."""


class VersionError(LookupError):
    """The history has no such version, or not all of it."""


def merged(
    live: Live, name: str, config: Mapping[str, Any] | None, *, http_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the config of all applications, with one of them replaced, added or left out.

    Args:
        live: The cluster as it is now.
        name: The application.
        config: Its config; None to remove it.
        http_options: Host and port of the proxies, which count if Serve is not running yet.

    Raises:
        NotOursError: The application was deployed from Python code, so its config is not known.
        RefusedError: The cluster hides values of another application, which a write would destroy.
    """
    mine = live.applications.get(name)
    if mine and mine.config is None and mine.status != DELETING:
        msg = (
            f"got the application {name!r}, which was deployed from Python code (serve.run), expected one with a "
            "config, which could be restored: choose another name, or remove it first"
        )
        raise NotOursError(msg)
    others = [
        application.config
        for application in live.applications.values()
        if application.name != name and application.config is not None and application.status != DELETING
    ]
    for other in others:
        if any(_REDACTED in variables.values() for variables in _env_vars(other)):
            msg = (
                f"the dashboard hides environment variables of the application {other.get('name')!r} from this client, "
                "and writing would destroy them: give headers= without a browser's User-Agent"
            )
            raise RefusedError(msg)
    options = dict(live.options)
    if not live.started and http_options:
        options["http_options"] = dict(http_options)
    return {**options, "applications": [*others, *([dict(config)] if config is not None else [])]}


def taken_route(live: Live, name: str, route: str | None) -> str | None:
    """Return the other application that has a route already; None if there is none."""
    taken = (each for each in live.applications.values() if each.name != name and each.status != DELETING)
    return next((each.name for each in taken if route is not None and each.route_prefix == route), None)


def same(live: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> bool:
    """Return whether a live config is the wanted one; `SECRET` in the wanted one stands for any text."""
    if live is None or wanted is None:
        return live is wanted
    shown = {key: value for key, value in live.items() if key in wanted or key not in _FILLED_IN}
    return _equal(shown, wanted)


def _equal(live: Any, wanted: Any) -> bool:
    if isinstance(live, dict) and isinstance(wanted, dict):
        one, other = ({key: value for key, value in each.items() if not _empty(value)} for each in (live, wanted))
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(live, list) and isinstance(wanted, list):
        return len(live) == len(wanted) and all(_equal(one, other) for one, other in zip(live, wanted, strict=True))
    return bool(live == wanted) or (wanted == SECRET and isinstance(live, str))


def _empty(value: Any) -> bool:
    return value is None or value in ({}, [])


# Environment variables ----------------------------------------------------------------------------------------------


def with_variables(config: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Return a config whose replicas get more environment variables."""
    if not variables:
        return dict(config)
    runtime_env = dict(config.get("runtime_env") or {})
    runtime_env["env_vars"] = {**(runtime_env.get("env_vars") or {}), **variables}
    return {**config, "runtime_env": runtime_env}


def redacted(config: Mapping[str, Any] | None, known: set[tuple[str, str]]) -> dict[str, Any] | None:
    """Return a config with `SECRET` for each environment variable's value.

    Args:
        config: The config.
        known: Names and values that somebody gave in clear for the store to keep.
    """
    if config is None:
        return None
    return _mapped(config, lambda name, value: value if (name, value) in known else SECRET)


def in_clear(*configs: Mapping[str, Any] | None) -> set[tuple[str, str]]:
    """Return the names and values of all environment variables in configs that are not secret."""
    return {
        (name, value)
        for config in configs
        if config
        for variables in _env_vars(config)
        for name, value in variables.items()
        if value != SECRET
    }


def revealed(config: Mapping[str, Any], secrets: Mapping[str, str], live: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a stored config with the values of its secrets.

    Args:
        config: The stored config.
        secrets: This job's, which come first.
        live: The application's live config, whose values stand in for what the job was not given.

    Raises:
        VersionError: A value is nowhere.
    """
    there = {name: value for variables in _env_vars(live or {}) for name, value in variables.items()}
    missing: list[str] = []

    def value_of(name: str, value: str) -> str:
        if value != SECRET:
            return value
        found = secrets.get(name, there.get(name))
        if found is None:
            missing.append(name)
        return found or ""

    result = _mapped(config, value_of)
    if missing:
        names = ", ".join(sorted(missing))
        msg = (
            f"the config needs {names}, whose values the store does not keep: give them as secrets= of this job "
            "(for Airflow, by reference)"
        )
        raise VersionError(msg)
    return result


def _env_vars(config: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for runtime_env in _runtime_envs(config):
        variables = runtime_env.get("env_vars")
        if isinstance(variables, dict):
            yield variables


def _runtime_envs(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for each in value:
            yield from _runtime_envs(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key == "runtime_env" and isinstance(each, dict):
                yield each
            else:
                yield from _runtime_envs(each)


def _mapped(value: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """Return a copy in which each environment variable's value is changed."""

    def copy(each: Any, *, runtime_env: bool = False) -> Any:
        if isinstance(each, list):
            return [copy(item) for item in each]
        if not isinstance(each, dict):
            return each
        return {
            key: {name: change(name, text) for name, text in item.items()}
            if runtime_env and key == "env_vars" and isinstance(item, dict)
            else copy(item, runtime_env=key == "runtime_env")
            for key, item in each.items()
        }

    result: dict[str, Any] = copy(value)
    return result
