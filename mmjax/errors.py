"""How a run or a command ends when it does not end well: error classes and their exit codes."""

from __future__ import annotations

from mmjax.config.error import ConfigError

__all__ = [
    "EXIT_CODES",
    "BadDataError",
    "CheckFailed",
    "ConfigError",
    "HostLost",
    "Interrupted",
    "NoCheckpoint",
    "NumericsError",
    "Preempted",
    "RunError",
    "StorageError",
    "WorkdirBusy",
]


class RunError(RuntimeError):
    """Base of the errors with an exit code of their own; the message is for the user."""


class CheckFailed(RunError):
    """A check that was asked for failed: parity, verify, self-test."""


class BadDataError(RunError):
    """Too much bad data; the message names source, reason and keys."""


class NoCheckpoint(RunError):
    """There is no usable checkpoint under the path."""


class HostLost(RunError):
    """A host or a device was lost; starting again at once is right."""


class NumericsError(RunError):
    """Losses or gradients stay not finite."""


class StorageError(RunError):
    """Writing or reading durable state failed."""


class Preempted(RunError):
    """Stopped by a signal after a complete save; the same command goes on."""


class WorkdirBusy(RunError):
    """Another run holds the workdir."""


class Interrupted(KeyboardInterrupt):
    """A second interrupt: stop now. No `except Exception` holds it up."""


EXIT_CODES: dict[type[BaseException], int] = {
    ConfigError: 2,
    CheckFailed: 3,
    BadDataError: 65,
    NoCheckpoint: 66,
    HostLost: 69,
    NumericsError: 70,
    StorageError: 74,
    Preempted: 75,
    WorkdirBusy: 76,
    KeyboardInterrupt: 130,
}
