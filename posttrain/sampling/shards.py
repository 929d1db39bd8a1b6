"""Generates a long list of requests in shards that are committed one by one.

While the caller works on a shard's samples, the engine generates the next one. Where the engine
fails, a shard is tried again in smaller parts.

Knows files and requests. A shard that lies in the folder is read, not sampled again; its name holds
a hash of its requests, so another list, model settings aside, never meets it. The folder must
belong to one step: nothing here knows which model an engine holds.

    for request, samples in generate_in_shards(engine, requests, 64, out / "shards", progress):
        …
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from posttrain.errors import BadInput, Damaged, GuardFailed, StepFailed
from posttrain.generation import Generates, Request, Sample
from posttrain.rows import content_id
from posttrain.tables import load_rows, write_rows

_HALVINGS = 2
"""How often a shard that fails is halved before the step fails."""


class _Answer(BaseModel):
    """One line of a shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    samples: tuple[Sample, ...]


def generate_in_shards(
    engine: Generates,
    requests: Sequence[Request],
    shard_size: int,
    folder: Path,
    progress: Callable[[int, int], None],
) -> Generator[tuple[Request, list[Sample]]]:
    """Each request with its samples, in order; what was generated survives a crash.

    Seeds stand in the requests, so they do not depend on the shard size.

    Args:
        engine: what answers the requests that lie in no shard yet.
        requests: with distinct ids.
        shard_size: requests a shard.
        folder: where the shards are kept.
        progress: called with the requests done and their total, once a shard.

    Raises:
        BadInput: two requests have the same id, or the engine refuses one.
        StepFailed: the engine fails on a quarter of a shard, too; names the shard.
        Damaged: a shard in the folder does not hold its requests.
    """
    ids = [request.id for request in requests]
    if len(set(ids)) < len(ids):
        twice = next(i for place, i in enumerate(ids) if i in ids[:place])
        raise BadInput(f"two generation requests have the id {twice}; ids must be distinct")
    starts = range(0, len(requests), shard_size)
    shards = [list(requests[start : start + shard_size]) for start in starts]

    def commit(number: int) -> list[_Answer]:
        """The answers of a shard, which lies on disk then."""
        shard = shards[number]
        path = folder / f"{number:05d}-{content_id([_content(r) for r in shard])}.jsonl"
        if not path.exists():
            answers = _generate(engine, shard, path.stem, _HALVINGS)
            pairs = zip(shard, answers, strict=True)
            write_rows(path, (_Answer(id=r.id, samples=tuple(s)) for r, s in pairs))
        return _read(path, shard)

    done = 0
    # Leaving waits for the shard at work: it is paid for, and the engine must not be closed in it.
    with ThreadPoolExecutor(1, "shard") as ahead:
        coming = [ahead.submit(commit, number) for number in range(min(1, len(shards)))]
        for number, shard in enumerate(shards):
            answers = coming.pop().result()
            if number + 1 < len(shards):
                coming.append(ahead.submit(commit, number + 1))
            for request, answer in zip(shard, answers, strict=True):
                yield request, list(answer.samples)
            done += len(shard)
            progress(done, len(requests))


def _generate(
    engine: Generates, requests: list[Request], shard: str, halvings: int
) -> list[list[Sample]]:
    """Samples of all requests; of each half on its own where the engine cannot do them at once."""
    try:
        return engine.generate(requests)
    except GuardFailed:
        raise
    except StepFailed as error:
        if not halvings or len(requests) == 1:
            raise StepFailed(
                f"shard {shard}: {error}; {len(requests)} requests at once were too many or the "
                "engine is broken; finished shards are kept"
            ) from error
    engine.restart()
    half = (len(requests) + 1) // 2
    return [
        samples
        for part in (requests[:half], requests[half:])
        for samples in _generate(engine, part, shard, halvings - 1)
    ]


def _content(request: Request) -> object:
    return request.model_dump(mode="json", exclude_none=True)


def _read(path: Path, shard: Sequence[Request]) -> list[_Answer]:
    try:
        answers = load_rows(path, _Answer)
    except BadInput as error:
        raise Damaged(f"{path}: {error}; delete this file and run again") from error
    expected = [(request.id, request.n) for request in shard]
    if [(answer.id, len(answer.samples)) for answer in answers] != expected:
        raise Damaged(f"{path}: it does not hold the requests of its name; delete it and run again")
    return answers
