"""Makes the strategy of ``tf.distribute`` that a job asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class NoTPUError(RuntimeError):
    """There is no TPU where the job runs, or not the one that it names."""


def build(tf: Any, settings: Mapping[str, Any]) -> Any:
    """Return the strategy.

    Those of several processes read ``TF_CONFIG``, connect, and return when all processes have.

    Args:
        tf: The package.
        settings: The job's, as `TensorFlowJob.settings` made them.

    Raises:
        NoTPUError: The strategy is ``tpu``, and there is none.
    """
    return _BUILDERS[settings["strategy"]](tf, settings)


def _default(tf: Any, _: Mapping[str, Any]) -> Any:
    return tf.distribute.get_strategy()


def _mirrored(tf: Any, settings: Mapping[str, Any]) -> Any:
    if count := settings["logical_devices"]:
        return tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(count)])
    return tf.distribute.MirroredStrategy()


def _multi_worker_mirrored(tf: Any, settings: Mapping[str, Any]) -> Any:
    api = tf.distribute.experimental
    implementation = api.CommunicationImplementation[settings["communication"].upper()]
    options = api.CommunicationOptions(implementation=implementation, timeout_seconds=settings["collective_timeout"])
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def _parameter_server(tf: Any, _: Mapping[str, Any]) -> Any:
    return tf.distribute.ParameterServerStrategy(tf.distribute.cluster_resolver.TFConfigClusterResolver())


def _tpu(tf: Any, settings: Mapping[str, Any]) -> Any:
    asked = settings["tpu"]
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            tpu=asked["name"], zone=asked["zone"], project=asked["project"]
        )
        if asked["name"] != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        msg = (
            f"got tpu={asked}, expected a TPU that this host reaches: {type(error).__name__}: {first}. Run the job on "
            'a TPU VM with name="local", correct name, zone and project, or take another strategy'
        )
        raise NoTPUError(msg) from error
    return tf.distribute.TPUStrategy(resolver)


_BUILDERS = {
    "default": _default,
    "mirrored": _mirrored,
    "multi_worker_mirrored": _multi_worker_mirrored,
    "parameter_server": _parameter_server,
    "tpu": _tpu,
}
