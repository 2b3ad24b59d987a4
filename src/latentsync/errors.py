"""The one error tree. A message says what went wrong, where, and what to try; the class decides the exit code.

| exit code | class | meaning |
| --- | --- | --- |
| 1 | LatentSyncError | anything else that went wrong |
| 2 | UsageError | an option or a configuration value that cannot be used |
| 3 | InputError | an input file is missing, unreadable, or lacks what is needed |
| 4 | NoFaceError | no usable face where one is required |
| 5 | WeightsError | weights missing, damaged, or not fitting the network |
| 6 | OutputError | the result cannot be written |
| 7 | DeviceError | the device is not there or out of memory |
| 130 | KeyboardInterrupt | stopped by the user |
"""


class LatentSyncError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class UsageError(LatentSyncError):
    """An option or configuration value that cannot be used."""

    exit_code = 2


class InputError(LatentSyncError):
    """An input file is missing, unreadable, or lacks what is needed."""

    exit_code = 3


class NoFaceError(LatentSyncError):
    """No usable face where one is required."""

    exit_code = 4


class WeightsError(LatentSyncError):
    """Weights are missing, damaged, or do not fit the network."""

    exit_code = 5


class OutputError(LatentSyncError):
    """The result cannot be written."""

    exit_code = 6


class DeviceError(LatentSyncError):
    """The compute device is not there or is out of memory."""

    exit_code = 7
