"""Hold every error that this package raises on purpose.

HpoError                    exit code 1
├── BadInput                exit code 2: the caller can mend it
│   ├── SpaceError          a search space that is malformed
│   ├── StudyMismatch       a study that was made with other settings
│   ├── StudyNotFound       no such study in the storage
│   └── DataDamaged         a data set that is there but not whole
├── DataUnavailable         a data set that is neither here nor to be fetched
├── StorageUnavailable      exit code 3: the database did not answer
├── ClusterUnavailable      no Ray cluster could be reached or started
├── StudyFailed             every trial of the study fails
├── StillRunning            a study that did not stop in time
├── DeviceLost              a device that computes nothing any more
└── LeaseLost               the trial was given to another worker
"""


class HpoError(Exception):
    """Be the root of the tree; its message is one line meant for a person."""

    exit_code = 1


class BadInput(HpoError):
    """Name a value that cannot be used, where it stands, and what is allowed."""

    exit_code = 2


class SpaceError(BadInput):
    """Name what is wrong in a search space, with file, line and key."""


class StudyMismatch(BadInput):
    """Name the settings in which a command differs from the study it would continue."""


class StudyNotFound(BadInput):
    """Name a study that the storage does not hold."""


class DataDamaged(BadInput):
    """Name a data file that is missing, cut short or altered."""


class DataUnavailable(HpoError):
    """Say why a data set could not be fetched."""


class StorageUnavailable(HpoError):
    """Say that the database could not be reached, without its password."""

    exit_code = 3


class ClusterUnavailable(HpoError):
    """Say why a Ray cluster could be neither reached nor started."""


class StudyFailed(HpoError):
    """Say that a study was stopped because all of its trials fail."""


class StillRunning(HpoError):
    """Name who still trains for a study that was stopped."""


class DeviceLost(HpoError):
    """Name a device that this process cannot use any more."""


class VerificationFailed(HpoError):
    """Say where a trial trained again from scratch differs from what was stored."""


class ArtifactsUnavailable(HpoError):
    """Say why an artifact store could not be used."""


class ArtifactMissing(HpoError):
    """Name a file that the artifact store does not hold."""


class ArtifactDamaged(HpoError):
    """Name a stored file whose checksum is wrong."""


class LeaseLost(HpoError):
    """Say that a trial's lease ran out and the trial is no longer this worker's."""
