"""Runs ``spark-submit`` in cluster mode, for YARN and Kubernetes; it ends when the cluster has the application."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.cluster.daemon import Daemon
from rallypoint.frameworks.spark import environment, properties
from rallypoint.frameworks.spark.cluster_mode_apps import SubmissionError
from rallypoint.frameworks.spark.installation import Installation
from rallypoint.spec.shipment import ARCHIVE

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

_SUBMIT = "org.apache.spark.deploy.SparkSubmit"
_VERSION = re.compile(r"spark-core_[\d.]+-(\d+\.\d+\.\d+\S*)\.jar")
_PY_FILES = "spark.submit.pyFiles"


class Submitter:
    """Submits one application.

    Args:
        settings: The job's.
        entry: ``jar PATH MAIN_CLASS ARG…`` or ``script PATH ARG…``.
        stop: Ends a submission that is under way.
    """

    def __init__(self, settings: Mapping[str, Any], entry: Sequence[str], stop: threading.Event) -> None:
        self._settings = settings
        self._entry = entry
        self._stop = stop

    def run(self, more: Mapping[str, str]) -> None:
        """Submit with further properties, and return when it is done.

        Raises:
            SubmissionError: ``spark-submit`` failed, or was ended.
            JavaMissingError: There is no Java here; `environment` says what else may be missing.
        """
        installed = Installation(self._settings.get("spark_home"), self._settings.get("java_home"))
        conf = self._conf() | dict(more)
        file = properties.write_private(properties.with_secrets(conf, environment.secrets(self._settings)))
        try:
            argv = installed.command(_SUBMIT, *self._words(file))
            running = Daemon(argv, env=installed.environment(), log="spark-submit")
            code = running.wait(self._stop)
            if code is None:
                running.stop()
        finally:
            properties.remove(file)
            if self._settings.get("keytab_secret"):
                properties.remove(conf["spark.kerberos.keytab"])
        if code != 0:
            ended = "was ended, because this stage was" if code is None else f"ended with exit code {code}"
            msg = f"spark-submit {ended}; it printed:\n{running.last_lines()}"
            raise SubmissionError(msg)

    def _conf(self) -> dict[str, str]:
        conf = environment.complete(self._settings)
        environment.check_files(conf)
        if self._entry[0] == "jar" or self._settings["master"].startswith("k8s://"):
            # The archive of Rallypoint is a file of this host: a jar has no use for it, and on Kubernetes every such
            # file needs a place to be uploaded to.
            kept = [word for word in conf.get(_PY_FILES, "").split(",") if word and Path(word).name != ARCHIVE]
            conf.pop(_PY_FILES, None)
            if kept:
                conf[_PY_FILES] = ",".join(kept)
        return conf

    def _words(self, file: str) -> list[str]:
        words = environment.submit_words(self._settings, file)
        kind, path, *rest = self._entry
        if kind == "jar":
            main_class, *rest = rest
            words += ["--class", main_class]
        return [*words, path, *rest]


def spark_version(settings: Mapping[str, Any]) -> str:
    """Return the version of the Spark that the job has, as the protocol of submissions wants it."""
    home = settings.get("spark_home") or os.environ.get("SPARK_HOME")
    for path in Path(home, "jars").glob("spark-core_*.jar") if home else ():
        if match := _VERSION.match(path.name):
            return match[1]
    try:
        return importlib.metadata.version("pyspark")
    except importlib.metadata.PackageNotFoundError:
        return "4.0.0"  # a submission needs a version, whichever
