"""What a Spark job's options may be: masters, sizes, lists and properties, checked and in the form that Spark reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rallypoint.spec.gang import has_macro

LOCAL = "local[*]"
MASTERS = (
    '"local[*]" or another local[…], "spark://host:port", "yarn", "k8s://https://host:port", or the result of a '
    "SparkCluster stage"
)
LEAST_HEAP = 450  # MiB: Spark refuses to start with less
_LOCAL = re.compile(r"^local(\[(\*|\d+)(\s*,\s*\d+)?\])?$|^local-cluster\[\d+,\d+,\d+\]$")
_STANDALONE = re.compile(r"^spark://[^\s/,:]+:\d+(,[^\s/,:]+:\d+)*$")
_KUBERNETES = re.compile(r"^k8s://(https?://)?[^\s/]+(/\S*)?$")
_CONNECT = re.compile(r"^sc://[^\s/;]+(/(;\S*)?)?$")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgtp])(?:i?b)?\s*$", re.IGNORECASE)
_MIB = {"k": 1 / 1024, "m": 1, "g": 1024, "t": 1024**2, "p": 1024**3}
_PROPERTY = re.compile(r"^spark\.[^\s=]+$")
_SECRET = re.compile(
    r"(secret|password|token|(secret|access|account|private|api)[._-]?key)$|\.account\.key\.|sas\.fixed\.token",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(r"\.secrets\.", re.IGNORECASE)  # Kubernetes mounts secrets by name
_COORDINATES = re.compile(r"^[^\s:,/]+:[^\s:,/]+:[^\s:,/]+$")
_VARIABLE = re.compile(r"^[^\s=\0]+$")


class WrongOptionError(ValueError):
    """An option is wrong: `got`, what was `expected`, and how to fix it."""

    def __init__(self, got: object, expected: str, fix: str = "") -> None:
        super().__init__(expected)
        self.got = got
        self.expected = expected
        self.fix = fix


def master_of(value: object) -> str:
    """Return a master's URL.

    Args:
        value: None for ``local[*]``, a URL, or an address object with ``master``.

    Raises:
        WrongOptionError: It is none.
    """
    found = value.get("master") if isinstance(value, Mapping) else value
    if found is None or found == "":
        if isinstance(value, Mapping):
            raise WrongOptionError(value, MASTERS)
        return LOCAL
    text = found.strip() if isinstance(found, str) else ""
    known = text == "yarn" or any(kind.match(text) for kind in (_LOCAL, _STANDALONE, _KUBERNETES))
    if not known or has_macro(text):
        fix = 'give a Spark Connect server with connect="sc://…"' if text.startswith("sc://") else ""
        raise WrongOptionError(found, MASTERS, fix)
    return text


def connect_of(value: object) -> str | None:
    """Return the URL of a Spark Connect server; None for none.

    Args:
        value: The URL, or an address object with ``remote``, such as a SparkConnectServer's result.

    Raises:
        WrongOptionError: It is none, or has a token in it.
    """
    if isinstance(value, Mapping) and value.get("remote"):
        value = value["remote"]
    if value is None or value == "":
        return None
    expected = (
        '"sc://host:port", with parameters as in "sc://host:port/;use_ssl=true", or the result of a '
        "SparkConnectServer stage"
    )
    if not isinstance(value, str) or not _CONNECT.match(value.strip()) or has_macro(value):
        raise WrongOptionError(value, expected)
    if re.search(r";\s*token=", value, re.IGNORECASE):
        fix = "give it as the secret SPARK_CONNECT_AUTHENTICATE_TOKEN, which Spark's client reads"
        raise WrongOptionError("a URL with a token", f"{expected}, without the token", fix)
    return value.strip()


def is_local(master: str) -> bool:
    """Return whether the executors are threads of the driver."""
    return master.startswith("local")


def memory_of(value: object, *, heap: bool = True) -> str | None:
    """Return a size as Spark and Java both read it, in whole MiB; None for none.

    Args:
        value: Text such as ``"2g"``, ``"512m"`` or ``"1.5GiB"``. Spark's units are powers of 1024, also ``"gb"``.
        heap: Whether it is a JVM's heap, of which Spark needs at least 450 MiB.

    Raises:
        WrongOptionError: It is no size, has no unit, or is too small.
    """
    if value is None or value == "":
        return None
    match = _SIZE.match(value) if isinstance(value, str) else None
    if not match:
        raise WrongOptionError(value, 'a size with its unit, such as "2g" or "512m", or None')
    size = int(float(match[1]) * _MIB[match[2].lower()])
    if heap and size < LEAST_HEAP:
        raise WrongOptionError(value, f'at least "{LEAST_HEAP}m", without which Spark does not start')
    return f"{size}m"


def count_of(value: object) -> int | None:
    """Return a whole number, 1 or more; text that is one is taken too, and None stays.

    Raises:
        WrongOptionError: It is none.
    """
    if value is None or value in {"", "None"}:
        return None
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdigit() or int(text) < 1:
        raise WrongOptionError(value, "a whole number, 1 or more, or None")
    return int(text)


def list_of(value: object) -> list[str]:
    """Return a list of words, from a sequence or from text with commas between them, as spark-submit takes it.

    Raises:
        WrongOptionError: It is neither, or a word holds a comma.
    """
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(word, str) for word in given):
        raise WrongOptionError(value, "a list of texts, or one text with commas between them")
    words = [word.strip() for word in given if word.strip()]
    for word in words:
        if "," in word or "\0" in word or has_macro(word):
            raise WrongOptionError(word, "a text without commas, NUL and ${rallypoint:…}")
    return words


def packages_of(value: object) -> list[str]:
    """Return Maven coordinates.

    Raises:
        WrongOptionError: One has not the three parts.
    """
    words = list_of(value)
    for word in words:
        if not _COORDINATES.match(word):
            raise WrongOptionError(word, '"group:artifact:version"', "files go into jars=")
    return words


def exclusions_of(value: object) -> list[str]:
    """Return Maven coordinates without a version.

    Raises:
        WrongOptionError: One has not the two parts.
    """
    words = list_of(value)
    for word in words:
        if word.count(":") != 1:
            raise WrongOptionError(word, '"group:artifact"')
    return words


def conf_of(value: object, owned: Mapping[str, str]) -> dict[str, str]:
    """Return Spark properties as text.

    Args:
        value: Values by property: text, numbers, booleans.
        owned: The job's option that sets a property, by property.

    Raises:
        WrongOptionError: A key is no property of Spark's, or belongs to an option; a value is no text; or it is a
            secret, which would be shown.
    """
    found = {}
    for name, given in _properties(value).items():
        if name in owned:
            raise WrongOptionError({name: given}, f"it as {owned[name]}=")
        if is_secret(name):
            fix = "secrets= has the value of an environment variable, and secret_conf= says which property gets it"
            raise WrongOptionError(f"{name}, whose value would be shown", "no secret in conf=", fix)
        text = str(given).lower() if isinstance(given, bool) else str(given)
        if given is None or not isinstance(given, str | int | float) or has_macro(text) or "\0" in text:
            raise WrongOptionError({name: given}, "text, a number or a boolean, without NUL and ${rallypoint:…}")
        found[name] = text
    return found


def secret_conf_of(value: object) -> dict[str, str]:
    """Return the names of environment variables by Spark property.

    Raises:
        WrongOptionError: A key is no property, or a value no variable's name.
    """
    found = {}
    for name, variable in _properties(value).items():
        if not isinstance(variable, str) or not _VARIABLE.match(variable):
            raise WrongOptionError(name, "the name of one of the job's secrets for each property")
        found[name] = variable
    return found


def is_secret(name: str) -> bool:
    """Return whether a property's value is a secret, by the property's name."""
    return bool(_SECRET.search(name)) and not _NO_SECRET.search(name)


def _properties(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise WrongOptionError(value, 'values by property, such as {"spark.sql.shuffle.partitions": 8}')
    for name in value:
        if not isinstance(name, str) or not _PROPERTY.match(name) or has_macro(name):
            fix = f'write "spark.hadoop.{name}"' if str(name).startswith(("fs.", "hive.", "hadoop.", "javax.")) else ""
            raise WrongOptionError(name, 'a property whose name starts with "spark."', fix)
    return dict(value)
