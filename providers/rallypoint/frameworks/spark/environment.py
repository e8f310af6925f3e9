"""What Spark needs of the driver's process: Java, its files, variables, and one file with every property."""

from __future__ import annotations

import base64
import binascii
import importlib.util
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rallypoint.frameworks.cluster.addresses import wait_for
from rallypoint.frameworks.spark import hive, properties, s3a
from rallypoint.frameworks.spark.java import require_java, require_version
from rallypoint.spec.shipment import ARCHIVE
from rallypoint.worker import context
from rallypoint.worker.entry import EntryLoadError
from rallypoint.worker.stage import stage

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOOPBACK = "127.0.0.1"
_FILES = ("spark.jars", "spark.submit.pyFiles", "spark.files", "spark.archives", "spark.kerberos.keytab")


class FileMissingError(EntryLoadError):
    """A file that the job names is not on this host."""


class SecretMissingError(EntryLoadError):
    """A variable that a property takes its secret from is not set, or is none."""


class MasterUnreachableError(ConnectionError):
    """Nothing answers at the master's address."""


class ConnectUnreachableError(ConnectionError):
    """Nothing answers at the address of the Spark Connect server."""


def prepare(settings: Mapping[str, Any]) -> str:
    """Make this process, and what it starts, ready for a Spark driver, and return the path of the properties file.

    Args:
        settings: Those of `SparkJob.settings`, of a job in client mode with a master.

    Raises:
        JavaMissingError: There is no Java, or an old one.
        FileMissingError: A file that the job names is not here.
        SecretMissingError: A variable with a secret is not set.
        MasterUnreachableError: A standalone master does not answer.
        S3AMissingError: Spark has not what its ``s3a://`` settings are for.
    """
    found = require_java()
    find_pyspark(settings.get("spark_home"))
    require_version(found, spark_home())
    conf = complete(settings)
    check_files(conf)
    s3a.require_s3a(conf, spark_home(), also=settings.get("secret_conf", {}))
    master = conf["spark.master"]
    if master.startswith("spark://"):
        _wait_for_master(master, settings["connect_timeout"])
    if master.startswith("local") or all(host == _LOOPBACK for host, _ in _addresses(master)):
        os.environ.setdefault("SPARK_LOCAL_IP", _LOOPBACK)
    python = conf.get("spark.pyspark.python") or os.environ.get("PYSPARK_PYTHON") or sys.executable
    os.environ.update({"PYSPARK_PYTHON": python, "PYSPARK_DRIVER_PYTHON": sys.executable})
    path = properties.write_private(properties.with_secrets(conf, secrets(settings)))
    os.environ["PYSPARK_SUBMIT_ARGS"] = shlex.join([*submit_words(settings, path), "pyspark-shell"])
    return path


def submit_words(settings: Mapping[str, Any], path: str) -> list[str]:
    """Return the options of spark-submit: everything that a property can say is in the file.

    Args:
        settings: Those of `SparkJob.settings`.
        path: The properties file.
    """
    words = ["--properties-file", path, "--load-spark-defaults"]
    if user := settings.get("proxy_user"):
        words += ["--proxy-user", user]
    return words


def complete(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the job's properties with those that follow from where it runs, without the secret ones.

    Raises:
        FileMissingError: The properties file that the job names is not here.
        SecretMissingError: The variable with the keytab is not set.
    """
    here = stage()
    known = context.StageContext.from_environment()
    found = {
        "spark.app.name": here.name,
        # Any free port: Spark's own choice fails for the seventeenth driver of a host.
        "spark.ui.port": "0",
        "spark.ui.showConsoleProgress": "false",
        "spark.rallypoint.stage": here.name,
        "spark.rallypoint.attempt": known.attempt if known else "local",
        "spark.rallypoint.dataUri": here.data_uri,
    }
    if path := settings.get("properties_file"):
        if not Path(path).is_file():
            raise _missing("properties_file", path)
        found |= properties.parse(Path(path).read_text(encoding="utf-8").splitlines())
    found |= settings.get("conf", {})
    found = hive.with_defaults(found, _hive_folder(here.data_uri))
    found |= {"spark.master": settings["master"], "spark.submit.deployMode": settings["deploy_mode"]}
    if variable := settings.get("keytab_secret"):
        found["spark.kerberos.keytab"] = _keytab(variable)
    shipped = next((path for path in sys.path if Path(path).name == ARCHIVE), None)
    if shipped and not settings["master"].startswith("local"):  # for functions that executors import from Rallypoint
        found["spark.submit.pyFiles"] = ",".join(filter(None, [found.get("spark.submit.pyFiles"), shipped]))
    return found


def secrets(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the secret values by property.

    Raises:
        SecretMissingError: A variable is not set.
    """
    wanted = settings.get("secret_conf", {})
    for name, variable in wanted.items():
        if variable not in os.environ:
            msg = f"got no variable {variable} for the property {name}, expected it among the job's secrets="
            raise SecretMissingError(msg)
    return {name: os.environ[variable] for name, variable in wanted.items()}


def check_files(conf: Mapping[str, str]) -> None:
    """Raise for a local file that is not on this host; what has another scheme is for Spark to find.

    Raises:
        FileMissingError: One is missing.
    """
    for name in _FILES:
        for word in filter(None, conf.get(name, "").split(",")):
            path = word.partition("#")[0].removeprefix("file://").removeprefix("file:")
            if "://" not in path and not path.startswith("local:") and not _matches(path):
                raise _missing(name, path)


def find_pyspark(home: str | None) -> None:
    """Make ``import pyspark`` find the package of a Spark distribution, where one is named.

    Raises:
        FileMissingError: The distribution has none.
    """
    if home is None:
        return
    python = Path(home, "python")
    if (python / "pyspark").is_dir():
        found = [str(python), *map(str, (python / "lib").glob("py4j-*-src.zip"))]
        sys.path[:0] = found
        os.environ["PYTHONPATH"] = os.pathsep.join([*found, os.environ.get("PYTHONPATH", "")])
        importlib.invalidate_caches()
    elif not Path(home, "jars").is_dir() or importlib.util.find_spec("pyspark") is None:
        raise _missing("spark_home", str(python / "pyspark"))


def spark_home() -> str:
    """Return the folder of the Spark that is used here."""
    from pyspark.find_spark_home import _find_spark_home  # the module's one function

    return str(os.environ.get("SPARK_HOME") or _find_spark_home())


def _hive_folder(data_uri: str) -> str:
    """Return where an embedded metastore is by default: below the stage's folder, or else the attempt's."""
    if data_uri.startswith("file://"):
        return f"{unquote(data_uri.removeprefix('file://'))}/hive"
    return f"{os.environ.get(context.RUN_DIR) or tempfile.mkdtemp(prefix='rallypoint-spark-')}/hive"


def _wait_for_master(master: str, seconds: float) -> None:
    if not wait_for([f"{host}:{port}" for host, port in _addresses(master)], seconds):
        msg = (
            f"got the Spark master {master}, at which nothing answered within {seconds:g} s from {context.host()}: "
            "start it, correct master=, or leave it out for a local Spark"
        )
        raise MasterUnreachableError(msg)


def _addresses(master: str) -> list[tuple[str, int]]:
    if not master.startswith("spark://"):
        return [("", 0)]
    parts = (urlsplit(f"//{each}") for each in master.removeprefix("spark://").split(","))
    return [(part.hostname or "", part.port or 7077) for part in parts]


def _keytab(variable: str) -> str:
    """Write a keytab from its variable to a file that only this user can read, and return its path."""
    try:
        data = base64.b64decode(os.environ[variable], validate=True)
    except (KeyError, binascii.Error):
        msg = f"got no keytab in base64 in the variable {variable}, expected it among the job's secrets="
        raise SecretMissingError(msg) from None  # the cause would show it
    folder = os.environ.get(context.RUN_DIR) or tempfile.mkdtemp(prefix="rallypoint-spark-")
    descriptor, path = tempfile.mkstemp(suffix=".keytab", dir=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    return path


def _matches(path: str) -> bool:
    """Return whether a path, which may be a pattern as Spark takes it, is that of a file or folder here."""
    whole = Path(path).absolute()
    return whole.exists() or any(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))


def _missing(option: str, path: str) -> FileMissingError:
    msg = f"got {option}: {path}, which is not on {context.host()}: correct the path, or put the file there"
    return FileMissingError(msg)
