"""Being asked to end (SIGTERM): at once, or once what was done is saved.

A cluster asks so before it takes a machine away. A step that is made of shards may end anywhere; a
training ends where it can write a checkpoint.

    signal.signal(signal.SIGTERM, handle)
    with patient() as asked:
        while work and not asked():
            ...
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from posttrain.errors import Preempted

_asked = threading.Event()
_patient = threading.Event()


def handle(number: int, frame: FrameType | None) -> None:
    """A handler of SIGTERM.

    Raises:
        Preempted: nobody is patient.
    """
    _asked.set()
    if not _patient.is_set():
        raise Preempted("asked to end (SIGTERM); run the same command again to continue")


@contextmanager
def patient() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM raises nothing; the block asks whether it was sent, and ends by itself."""
    _patient.set()
    try:
        yield _asked.is_set
    finally:
        _patient.clear()
