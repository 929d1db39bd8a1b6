"""Topics: a linear classifier on vectors labels each dialog, coarse and fine (section 4.2.3).

The paper fine-tunes a model for it; this one learns from a few prompts a topic, on the vectors that
deduplication needs anyway. Suffixes: N rows, T fine topics, D dimensions.

    label_topics(rows, Topics(), read_topics(Path("data_quality/topics.yaml")), embed)
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from posttrain.curation.contract import Row, StepResult
from posttrain.curation.duplicates import embedded_rows
from posttrain.embedding import Embedded
from posttrain.errors import BadInput
from posttrain.settings.pipeline import Topics
from posttrain.workspace import read_yaml

STEP = "topics"
OTHER = "other"
Known = Mapping[str, Mapping[str, Sequence[str]]]
"""Coarse topic → fine topic → prompts."""


def read_topics(path: Path) -> Known:
    """The topics of a file.

    Raises:
        BadInput: no YAML of coarse topics with fine ones with prompts, fewer than two fine ones, or
            one without a prompt.
    """
    data = read_yaml(path)
    for coarse, fine in data.items():
        if not isinstance(fine, dict) or not fine:
            raise BadInput(f"{path}: {coarse}: expected fine topics with prompts")
        for name, prompts in fine.items():
            if not isinstance(prompts, list) or not prompts or not all(map(_is_text, prompts)):
                raise BadInput(f"{path}: {coarse}: {name}: expected a list of prompts")
    if sum(map(len, data.values())) < 2:
        raise BadInput(f"{path}: expected two topics or more")
    return data


def label_topics(
    rows: Sequence[Row],
    settings: Topics,
    known: Known,
    embed: Callable[[Sequence[str]], Embedded],
) -> StepResult:
    """Set `topic`, coarse and fine; drops nothing.

    A row's coarse topic is the one with the largest probability, `other` where that is small; the
    fine one is the likeliest in it.
    """
    pairs = [(coarse, fine) for coarse in sorted(known) for fine in sorted(known[coarse])]
    texts = [(prompt, n) for n, (c, f) in enumerate(pairs) for prompt in known[c][f]]
    model = LogisticRegression(C=settings.strength, class_weight="balanced", max_iter=1000)
    model.fit(embed([text for text, _ in texts]).vectors_ND, [number for _, number in texts])
    chances_NT = model.predict_proba(embedded_rows(rows, embed).vectors_ND)
    coarse_names = sorted(known)
    member_TC = np.array([[coarse == name for name in coarse_names] for coarse, _ in pairs])
    chances_NC = chances_NT @ member_TC
    kept: list[Row] = []
    notes: Counter[str] = Counter()
    for row, fine_T, coarse_C in zip(rows, chances_NT, chances_NC, strict=True):
        best = int(coarse_C.argmax())
        topic = (OTHER, OTHER)
        if coarse_C[best] >= settings.least_probability:
            topic = pairs[int(np.where(member_TC[:, best], fine_T, -1.0).argmax())]
        notes[topic[0]] += 1
        kept.append(row._replace(topic=topic).decide(STEP, " / ".join(topic)))
    return StepResult(kept, [], {}, dict(sorted(notes.items())))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
