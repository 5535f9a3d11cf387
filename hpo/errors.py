"""The errors that this package raises on purpose.

HpoError                    exit code 1
├── BadInput                exit code 2: the caller can correct it
│   ├── RecipeError         a field of a recipe that is missing, unknown or not allowed
│   ├── SpaceError          a malformed search space
│   ├── StudyMismatch       a study that was created with other settings
│   ├── RecipeRefused       parameters that a search space does not allow
│   ├── StudyNotFound       a study that is not in the storage
│   └── DataDamaged         a data set that is present but incomplete or altered
├── DataUnavailable         a data set that is neither present nor can be fetched
├── StorageUnavailable      exit code 3: the database did not answer
├── ClusterUnavailable      a Ray cluster that could be neither reached nor started
├── StudyFailed             a study of which every trial fails
├── StillRunning            a study that did not stop in time
├── DeviceLost              a device that can no longer compute
├── LeaseLost               a trial that no longer belongs to this worker
│   └── SpaceUsedUp         a trial for which the search space has no recipe left
├── VerificationFailed      a trial that gives another result when trained again
├── ArtifactsUnavailable    an artifact store that cannot be used
├── ArtifactMissing         a file that is not in the artifact store
└── ArtifactDamaged         a corrupt file in the artifact store
"""

MAX_SHOWN = 60
"""The most characters that a message shows of a value that somebody else wrote."""


class HpoError(Exception):
    """The root of the tree; its message is one line meant for a person."""

    exit_code = 1


class BadInput(HpoError):
    """A value that cannot be used; the message says where it is and what is allowed."""

    exit_code = 2


class RecipeError(BadInput):
    """A field of a recipe that cannot be used, with the reason."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field, self.problem = field, problem

    def __str__(self) -> str:
        return f"recipe: {self.field} {self.problem}"


class SpaceError(BadInput):
    """A mistake in a search space, with file, line and key."""


class StudyMismatch(BadInput):
    """A study with other settings than the command that would continue it; the message lists the differences."""


class RecipeRefused(BadInput):
    """Parameters of a trial that the search space does not allow; the message names one, and what is allowed."""


class StudyNotFound(BadInput):
    """A study that the storage does not hold."""


class DataDamaged(BadInput):
    """A data file that is missing, cut short or altered."""


class DataUnavailable(HpoError):
    """A data set that could not be downloaded, with the reason."""


class StorageUnavailable(HpoError):
    """A database that could not be reached; the message leaves out its password."""

    exit_code = 3


class ClusterUnavailable(HpoError):
    """A Ray cluster that could be neither reached nor started, with the reason."""


class StudyFailed(HpoError):
    """A study that was stopped because all of its trials fail."""


class StillRunning(HpoError):
    """A stopped study that workers are still training for; the message names them."""


class DeviceLost(HpoError):
    """A device that this process can no longer use."""


class LeaseLost(HpoError):
    """A trial whose lease ran out, so that it no longer belongs to this worker."""


class SpaceUsedUp(LeaseLost):
    """A trial that was given up because every recipe of its search space has been tried."""


class VerificationFailed(HpoError):
    """A trial that differs from what was stored when it is trained again from scratch; the message says where."""


class ArtifactsUnavailable(HpoError):
    """An artifact store that could not be used, with the reason."""


class ArtifactMissing(HpoError):
    """A file that the artifact store does not hold."""


class ArtifactDamaged(HpoError):
    """A stored file whose checksum is wrong."""


def short(value: object) -> str:
    """Write a value for a message, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
