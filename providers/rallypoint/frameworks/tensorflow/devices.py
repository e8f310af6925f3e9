"""Which accelerators of its host a process uses, and what else has to be set before TensorFlow's runtime starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class DeviceError(RuntimeError):
    """The host does not have the devices that the job asks for."""


def choose(asked: int | Sequence[int] | None, *, found: int, position: int, sharing: int) -> list[int]:
    """Return the numbers of the GPUs that a process uses.

    Processes on one host never share a GPU: NCCL refuses it, and TensorFlow takes all of a GPU's memory.

    Args:
        asked: How many each process gets; the numbers of those that all processes of a host divide; None for all.
        found: How many the host has, of those that ``CUDA_VISIBLE_DEVICES`` shows.
        position: Which one this process is of those on its host that use GPUs, from 0.
        sharing: How many those are.

    Raises:
        DeviceError: There are not enough.
    """
    if isinstance(asked, int):
        first = position * asked
        if sharing * asked > found:
            msg = (
                f"got gpus={asked} for each of {sharing} process(es) on this host, which shows TensorFlow {found} "
                "GPU(s); expected no more than there are: lower gpus=, or use a host with more, with its drivers"
            )
            raise DeviceError(msg)
        return list(range(first, first + asked))
    pool = list(range(found)) if asked is None else list(asked)
    if absent := [number for number in pool if number >= found]:
        msg = (
            f"got gpus={list(asked or [])}, expected numbers of the {found} GPU(s) that TensorFlow sees on this host; "
            f"there is none of number {absent[0]}"
        )
        raise DeviceError(msg)
    share = len(pool) // sharing
    if pool and not share:
        msg = (
            f"got {len(pool)} GPU(s) for {sharing} processes on this host, expected one each: use fewer workers, or "
            "gpus=0 for none"
        )
        raise DeviceError(msg)
    return pool[position * share : (position + 1) * share]


def prepare(tf: Any, settings: Mapping[str, Any], *, position: int | None, sharing: int) -> None:
    """Show TensorFlow the devices that this process uses, before its runtime starts.

    Args:
        tf: The package.
        settings: ``gpus``, ``memory_growth``, ``logical_devices`` and ``jit_compile`` of the job.
        position: Which one this process is of those on its host that use GPUs; None for one that uses none.
        sharing: How many those are.

    Raises:
        DeviceError: There are not enough.
    """
    gpus = tf.config.list_physical_devices("GPU")
    chosen = [] if position is None else choose(settings["gpus"], found=len(gpus), position=position, sharing=sharing)
    if gpus:
        tf.config.set_visible_devices([gpus[number] for number in chosen], "GPU")
    for number in chosen:
        tf.config.experimental.set_memory_growth(gpus[number], settings["memory_growth"])
    if count := settings["logical_devices"]:
        (cpu, *_) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    if settings["jit_compile"]:
        tf.config.optimizer.set_jit("autoclustering")
