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
from typing import Any

import numpy as np

from posttrain.curation.balance import opening_of, phrases_of
from posttrain.curation.clean import apply_rules, check_known
from posttrain.curation.contract import CurationTools, Row, Scored, Store
from posttrain.curation.decontaminate import held_out_in, index_heldout, worth_a_look
from posttrain.dedup import dialog_hash
from posttrain.dedup.minhash import Hashes, band_keys
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
        number = 0
        found: list[Row] = []
        remaining = iter(rows)
        while batch := list(islice(remaining, BATCH)):
            found += self._batch(batch, number)
            number += len(batch)
        return sorted(found, key=lambda row: (row.id, row.content))

    @property
    def keys_NB(self) -> Hashes:
        """Sketches of all rows by their number, for `posttrain.dedup.minhash`."""
        return np.concatenate(self._keys)

    def changed(self, rows: Sequence[tuple[Row, Example]]) -> list[Row]:
        """Rows whose texts have changed, looked at again."""
        examples = [row.example.model_copy(update={"messages": e.messages}) for row, e in rows]
        found = self._looked_at(examples)
        for (row, _), keys_B in zip(rows, self._sketched(examples), strict=True):
            self._keys[row.number // BATCH][row.number % BATCH] = keys_B
        return [row._replace(**texts) for (row, _), texts in zip(rows, found, strict=True)]

    def _batch(self, batch: Sequence[Scored], first: int) -> Iterator[Row]:
        cleaned = [apply_rules(scored.example, self._rules, self._tools.rules) for scored in batch]
        examples = [example for example, _, _ in cleaned]
        self._keys.append(self._sketched(examples))
        for place, (scored, (example, edits, unclean), texts) in enumerate(
            zip(batch, cleaned, self._looked_at(examples), strict=True)
        ):
            self._check(scored)
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
                content=_content(scored),
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

    def _looked_at(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Of each example what its text has to say, and where it lies from now on."""
        searched, dialogs = self._settings.decontaminate, [e.messages for e in examples]
        looks = worth_a_look(dialogs, self._heldout, searched.ngram)
        return [
            {
                "store": self._store,
                "at": self._store.add(example),
                "dialog": dialog_hash(example),
                "hit": held_out_in(example.messages, self._heldout, searched) if look else None,
                **self._said(example),
            }
            for example, look in zip(examples, looks, strict=True)
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

    def _check(self, scored: Scored) -> None:
        own_id = scored.example.id
        if scored.score is not None and not math.isfinite(scored.score):
            raise BadInput(f"row {own_id}: expected a finite score, got {scored.score}")
        dialog = dialog_hash(scored.example)
        first = self._dialogs.get(own_id)
        if first is not None and first != dialog:
            raise BadInput(f"two different rows have the id {own_id}: give each its own")
        if first is not None and "exact_duplicates" not in self._settings.order:
            raise BadInput(
                f"the row {own_id} occurs twice: put exact_duplicates into the order, "
                "or leave one out"
            )
        self._dialogs[own_id] = dialog


def _content(scored: Scored) -> str:
    """The same of rows that came in equal."""
    prompt = scored.prompt.model_dump_json() if scored.prompt else ""
    rest = (repr(scored.score), repr(scored.grade), repr(scored.human))
    whole = "\n".join((scored.example.model_dump_json(), prompt, *rest))
    return hashlib.sha256(whole.encode()).hexdigest()[:32]
