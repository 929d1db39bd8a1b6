"""The processes of one training: how many there are, which one this is, and what all of them know.

Knows torch.distributed and the launcher's environment variables; a training by itself is one rank.

    with main_first():
        clean_up(folder)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

ItemT = TypeVar("ItemT")


def num_ranks() -> int:
    """Processes of this training, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes what all of them have made."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block before the others do."""
    if num_ranks() == 1:
        yield
        return
    with PartialState().main_process_first():
        yield


def any_rank(flag: bool) -> bool:
    """Whether it is so in any process; each of them has to ask."""
    return any(from_all_ranks([flag]))


def sum_over_ranks(value: int) -> int:
    """The sum of every process's number."""
    return sum(from_all_ranks([value]))


def from_all_ranks(values: list[ItemT]) -> list[ItemT]:
    """Every process's items, rank after rank."""
    if num_ranks() == 1:
        return values
    found: list[ItemT] = gather_object(values)
    return found


def leave() -> None:
    """Part from the other processes; without it one of them may abort at its end."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
