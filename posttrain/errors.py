"""The one tree of exceptions, each with the exit code the command line ends with.

A message says what was expected, what came, and what to do. Code that cannot mend a
problem raises one of these; only `posttrain.cli` catches them.
"""


class PosttrainError(Exception):
    """A failure that the command line reports in one line."""

    exit_code = 1


class BadInput(PosttrainError):
    """Settings, data or arguments that a user has to change (exit code 2)."""

    exit_code = 2


class StepFailed(PosttrainError):
    """A step ended without publishing (exit code 1)."""


class GuardFailed(StepFailed):
    """A silent failure was caught before it could spoil a model (exit code 1)."""


class Damaged(PosttrainError):
    """A published file is missing or differs from its manifest (exit code 1)."""


class Busy(PosttrainError):
    """Another process holds the run (exit code 1)."""


class Interrupted(PosttrainError):
    """Somebody pressed Ctrl-C; the same command continues (exit code 130)."""

    exit_code = 130


class WaitingForPeople(PosttrainError):
    """Annotations are still missing (exit code 3)."""

    exit_code = 3


class Preempted(PosttrainError):
    """The machine asked for itself back; the same command continues (exit code 75)."""

    exit_code = 75


def from_name(kind: str, message: str) -> PosttrainError:
    """The exception of that name, as another process told it; StepFailed if it is none of ours."""
    found = globals().get(kind)
    is_ours = isinstance(found, type) and issubclass(found, PosttrainError)
    return found(message) if is_ours and found is not None else StepFailed(message)
