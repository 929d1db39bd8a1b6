"""Decontamination: no held-out prompt is trained on (section 5.2), not even inside a longer text.

Knows the identity of a prompt (`posttrain.rows.prompt_hash`) and words; knows no split.

    held_out_in(example.messages, index_heldout(heldout, 13), Decontaminate(ngram=13))
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

from posttrain.curation.contract import Dropped, Hit, Row, StepResult, drop
from posttrain.dedup.minhash import run_hashes
from posttrain.rows import Message, Prompt, prompt_hash
from posttrain.settings.pipeline import Decontaminate

STEP = "decontaminate"
WORD = regex.compile(r"\w+")
ASKING = ("user", "tool")
"""Roles whose turns a prompt may end with."""


@dataclass(frozen=True)
class HeldoutIndex:
    """Held-out prompts, ready to be looked up."""

    by_hash: Mapping[str, str]
    """Prompt hash → id."""
    by_ngram: Mapping[tuple[str, ...], tuple[str, ...]]
    """n-gram → ids of the prompts that hold it."""
    num_ngrams: Mapping[str, int]
    """Different n-grams of a prompt, by id."""
    last_turns: frozenset[str]
    """What the prompts end with, white space folded."""
    runs: NDArray[np.uint64]
    """Hashes of the n-grams, sorted."""


def decontaminate(rows: Sequence[Row], num_heldout: int) -> StepResult:
    """Drop rows that ask a held-out prompt at any turn, or hold most n-grams of a long one.

    A hit names the held-out row; for n-grams, the one of which the largest share was found. Hits
    come with the rows from `posttrain.curation.scan`.
    """
    kept: list[Row] = []
    dropped: list[Dropped] = []
    for row in rows:
        hit = row.hit
        if hit is None:
            kept.append(row.decide(STEP, "no held-out prompt in it"))
        else:
            dropped.append(drop(row, STEP, hit.reason, heldout=hit.heldout, share=hit.share))
    return StepResult(kept, dropped, {}, {"heldout": num_heldout})


def held_out_in(
    messages: Sequence[Message], index: HeldoutIndex, settings: Decontaminate
) -> Hit | None:
    """The held-out prompt that a dialog asks at any turn, or holds most n-grams of."""
    exact = _asked(messages, index)
    if exact is not None:
        return Hit("held-out prompt", exact, 1.0)
    found, share = _overlap(messages, index, settings.ngram)
    if share >= settings.overlap:
        return Hit(f"{settings.ngram}-grams of a held-out prompt", found, round(share, 4))
    return None


def index_heldout(heldout: Sequence[Prompt], ngram: int) -> HeldoutIndex:
    """Look-up tables; of two equal prompts the smaller id is named."""
    by_hash: dict[str, str] = {}
    by_ngram: dict[tuple[str, ...], list[str]] = defaultdict(list)
    num_ngrams: dict[str, int] = {}
    for prompt in sorted(heldout, key=lambda p: p.id):
        by_hash.setdefault(prompt_hash(prompt.prompt), prompt.id)
        grams = _ngrams(prompt.prompt, ngram)
        num_ngrams[prompt.id] = len(grams)
        for gram in grams:
            by_ngram[gram].append(prompt.id)
    hashes, _ = run_hashes(list(by_ngram), ngram)
    return HeldoutIndex(
        by_hash,
        {gram: tuple(ids) for gram, ids in by_ngram.items()},
        num_ngrams,
        frozenset(_folded(prompt.prompt[-1].content) for prompt in heldout),
        np.unique(hashes),
    )


def worth_a_look(
    dialogs: Sequence[Sequence[Message]], index: HeldoutIndex, ngram: int
) -> NDArray[np.bool_]:
    """For each dialog whether it may hold a held-out prompt; False is certain, True is not."""
    found = np.array(
        [
            any(_folded(m.content) in index.last_turns for m in dialog if m.role in ASKING)
            for dialog in dialogs
        ],
        dtype=np.bool_,
    )
    if not len(index.runs):
        return found
    words = [_words(" ".join(m.content for m in one if m.role != "system")) for one in dialogs]
    long = [place for place, one in enumerate(words) if len(one) >= ngram]
    hashes, starts = run_hashes([words[place] for place in long], ngram)
    counts = np.concatenate([[0], np.cumsum(np.isin(hashes, index.runs))])
    found[long] |= counts[starts[1:]] > counts[starts[:-1]]
    return found


def _folded(text: str) -> str:
    return " ".join(text.split())


def _words(text: str) -> list[str]:
    found: list[str] = WORD.findall(text.casefold())
    return found


def _asked(messages: Sequence[Message], index: HeldoutIndex) -> str | None:
    for asked in _prompts(messages):
        found = index.by_hash.get(prompt_hash(asked))
        if found is not None:
            return found
    return None


def _prompts(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Every prompt inside a dialog: up to each user or tool turn, and each user turn alone."""
    for end, message in enumerate(messages, start=1):
        if message.role in ASKING:
            yield messages[:end]
        if message.role == "user":
            yield (message,)


def _overlap(messages: Sequence[Message], index: HeldoutIndex, ngram: int) -> tuple[str, float]:
    """The held-out prompt of which a dialog holds the largest share of n-grams."""
    if not index.by_ngram:
        return "", 0.0
    hits = Counter(
        held for gram in _ngrams(messages, ngram) for held in index.by_ngram.get(gram, ())
    )
    shares = [(-count / index.num_ngrams[held], held) for held, count in hits.items()]
    if not shares:
        return "", 0.0
    share, held = min(shares)
    return held, -share


def _ngrams(messages: Sequence[Message], ngram: int) -> set[tuple[str, ...]]:
    """Different runs of `ngram` words within a turn, system prompts left out."""
    grams: set[tuple[str, ...]] = set()
    for message in messages:
        if message.role != "system":
            words = _words(message.content)
            grams.update(zip(*(words[place:] for place in range(ngram)), strict=False))
    return grams
