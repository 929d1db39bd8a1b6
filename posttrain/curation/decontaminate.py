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
from posttrain.dedup.words import MARKS, Hashes, run_hashes
from posttrain.rows import Message, Prompt, prompt_hash
from posttrain.settings.pipeline import Decontaminate

STEP = "decontaminate"
WORD = regex.compile(r"\w+")
ASKING = ("user", "tool")
"""Roles whose turns a prompt may end with."""
LEAST_BITS = 16
"""Of the map of n-grams, which has sixteen places a held-out n-gram or more."""


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
    first_words: frozenset[str]
    """What those begin with."""
    runs: Hashes
    """Hashes of the n-grams, sorted."""
    map_M: NDArray[np.bool_]
    """For the leading bits of a hash, whether one of `runs` begins with them."""


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
    runs = np.unique(run_hashes([" ".join(gram) for gram in by_ngram], MARKS, ngram)[0])
    bits = max(LEAST_BITS, 4 + len(runs).bit_length())
    map_M = np.zeros(1 << bits, np.bool_)
    map_M[runs >> np.uint64(64 - bits)] = True
    last_turns = frozenset(_folded(prompt.prompt[-1].content) for prompt in heldout)
    return HeldoutIndex(
        by_hash,
        {gram: tuple(ids) for gram, ids in by_ngram.items()},
        num_ngrams,
        last_turns,
        frozenset(text.partition(" ")[0] for text in last_turns),
        runs,
        map_M,
    )


def worth_a_look(
    dialogs: Sequence[Sequence[Message]], index: HeldoutIndex, ngram: int
) -> NDArray[np.bool_]:
    """For each dialog whether it may hold a held-out prompt; False is certain, True is not."""
    found = np.array([_may_ask(dialog, index) for dialog in dialogs], dtype=np.bool_)
    if not len(index.runs):
        return found
    texts = [_plain(" ".join([m.content for m in one if m.role != "system"])) for one in dialogs]
    hashes, starts = run_hashes(texts, MARKS, ngram)
    shift = np.uint64(64 - (len(index.map_M).bit_length() - 1))
    likely = np.flatnonzero(index.map_M[hashes >> shift])
    hits = likely[np.isin(hashes[likely], index.runs)]
    found[np.searchsorted(starts, hits, side="right") - 1] = True
    return found


def _may_ask(dialog: Sequence[Message], index: HeldoutIndex) -> bool:
    for message in dialog:
        if message.role in ASKING:
            first = message.content.split(None, 1)[:1]
            known = (first[0] if first else "") in index.first_words
            if known and _folded(message.content) in index.last_turns:
                return True
    return False


def _folded(text: str) -> str:
    return " ".join(text.split())


def _words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    found: list[str] = WORD.findall(text.casefold())
    return found


def _plain(text: str) -> str:
    """A text whose words are parted by bytes that `MARKS` knows."""
    return text.lower() if text.isascii() else " ".join(_words(text))


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
