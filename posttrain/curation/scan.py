"""The first look at rows: all that their texts have to say, in one pass, batch by batch.

Cleans, hashes, sketches and searches each dialog while it is in memory, and leaves it in a store.
The steps that come later decide on what was found here.

    scan = Scan(settings, tools)
    rows = scan.read(scored_rows)
"""

import hashlib
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Self

import numpy as np

from posttrain.curation.balance import opening_of, phrases_of
from posttrain.curation.clean import apply_rules, check_known
from posttrain.curation.contract import CurationTools, Row, Scored, Store
from posttrain.curation.decontaminate import held_out_in, index_heldout, worth_a_look
from posttrain.dedup import dialog_hash
from posttrain.dedup.minhash import band_keys
from posttrain.dedup.words import Hashes
from posttrain.embedding import dialog_text
from posttrain.errors import BadInput
from posttrain.rows import Example, content_id
from posttrain.settings.pipeline import Pipeline

BATCH = 1024


class Scan:
    """Reads rows once, and holds what a step needs of all of them."""

    def __init__(self, settings: Pipeline, tools: CurationTools) -> None:
        """Nothing is read yet.

        Raises:
            BadInput: a cleaning rule that is not there.
        """
        self._settings, self._tools = settings, tools
        self._store = Store(tools.work)
        self._rules = settings.clean.rules if "clean" in settings.order else ()
        check_known(self._rules, tools.rules)
        self._heldout = index_heldout(tools.heldout, settings.decontaminate.ngram)
        self._keys: list[Hashes] = []
        self._dialogs: dict[str, str] = {}

    def read(self, rows: Iterable[Scored]) -> list[Row]:
        """The rows, sorted by id and content.

        Raises:
            BadInput: a score that is no finite number, an id that two different rows have, or an
                answer that no cleaning rule may give.
        """
        found: list[Row] = []
        remaining = iter(rows)
        while batch := list(islice(remaining, BATCH)):
            found += self._batch(batch, len(found))
        return sorted(found, key=lambda row: (row.id, row.content))

    @property
    def keys_NB(self) -> Hashes:
        """Sketches of all rows by their number, for `posttrain.dedup.minhash`."""
        return np.concatenate(self._keys)

    def changed(self, rows: Sequence[tuple[Row, Example]]) -> list[Row]:
        """Rows whose texts have changed, looked at again."""
        examples = [row.example.model_copy(update={"messages": e.messages}) for row, e in rows]
        found = self._looked_at(examples, [_Plain.of(example) for example in examples])
        for (row, _), keys_B in zip(rows, self._sketched(examples), strict=True):
            self._keys[row.number // BATCH][row.number % BATCH] = keys_B
        return [row._replace(**texts) for (row, _), texts in zip(rows, found, strict=True)]

    def _batch(self, batch: Sequence[Scored], first: int) -> Iterator[Row]:
        cleaned = [apply_rules(scored.example, self._rules, self._tools.rules) for scored in batch]
        examples = [example for example, _, _ in cleaned]
        self._keys.append(self._sketched(examples))
        came = [_Plain.of(scored.example) for scored in batch]
        plain = [
            one if example is scored.example else _Plain.of(example)
            for one, example, scored in zip(came, examples, batch, strict=True)
        ]
        for place, (scored, one, (example, edits, unclean), texts) in enumerate(
            zip(batch, came, cleaned, self._looked_at(examples, plain), strict=True)
        ):
            self._check(scored, one.dialog)
            extra: dict[str, Any] = example.model_extra or {}
            yield Row(
                number=first + place,
                id=example.id,
                capability=example.capability,
                source=example.source,
                score=scored.score,
                grade=scored.grade,
                human=scored.human,
                earlier=scored.earlier,
                level=scored.prompt.level if scored.prompt else None,
                pass_rate=extra.get("pass_rate"),
                judged=extra.get("judged_difficulty"),
                tags=tuple(sys.intern(str(tag)) for tag in extra.get("tags") or ()),
                content=_content(scored, one.raw),
                tie_break=content_id([self._tools.seed, example.id]),
                edits=tuple(edits),
                unclean=unclean,
                **texts,
            )

    def _sketched(self, examples: Sequence[Example]) -> Hashes:
        if "minhash" not in self._settings.order:
            return np.empty((len(examples), 0), np.uint64)
        texts = [dialog_text(example.messages) for example in examples]
        return band_keys(texts, self._settings.minhash.ngram)

    def _looked_at(
        self, examples: Sequence[Example], plain: Sequence["_Plain"]
    ) -> list[dict[str, Any]]:
        """Of each example what its text has to say, and where it lies from now on."""
        searched, dialogs = self._settings.decontaminate, [e.messages for e in examples]
        looks = worth_a_look(dialogs, self._heldout, searched.ngram)
        return [
            {
                "store": self._store,
                "at": self._store.add(one.raw),
                "dialog": one.dialog,
                "hit": held_out_in(example.messages, self._heldout, searched) if look else None,
                **self._said(example),
            }
            for example, one, look in zip(examples, plain, looks, strict=True)
        ]

    def _said(self, example: Example) -> dict[str, Any]:
        """What balancing looks at."""
        if "balance" not in self._settings.order:
            return {}
        answers = [m.content for m in example.messages if m.role == "assistant"]
        return {
            "phrases": phrases_of(answers, self._settings.balance.families),
            "opening": opening_of(answers[-1], self._settings.balance.words),
        }

    def _check(self, scored: Scored, dialog: str) -> None:
        own_id = scored.example.id
        if scored.score is not None and not math.isfinite(scored.score):
            raise BadInput(f"row {own_id}: expected a finite score, got {scored.score}")
        first = self._dialogs.get(own_id)
        if first is not None and first != dialog:
            raise BadInput(f"two different rows have the id {own_id}: give each its own")
        if first is not None and "exact_duplicates" not in self._settings.order:
            raise BadInput(
                f"the row {own_id} occurs twice: put exact_duplicates into the order, "
                "or leave one out"
            )
        self._dialogs[own_id] = dialog


class _Plain(NamedTuple):
    """An example as JSON, and the identity of its dialog."""

    raw: bytes
    dialog: str

    @classmethod
    def of(cls, example: Example) -> Self:
        return cls(example.model_dump_json(exclude_none=True).encode(), dialog_hash(example))


def _content(scored: Scored, raw: bytes) -> str:
    """The same of rows that came in equal."""
    prompt = scored.prompt.model_dump_json() if scored.prompt else ""
    rest = (prompt, repr(scored.score), repr(scored.grade), repr(scored.human))
    return hashlib.sha256(raw + "\n".join(rest).encode()).hexdigest()[:32]
