"""Passages of a workspace's corpora, found by the words of a query (TF-IDF, scikit-learn).

Knows files of texts and how they are cut into passages; an order of equals depends on ids alone.

    Corpus(Path("data/docs.jsonl")).retrieve("capital of Baka", k=2)
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from posttrain.errors import BadInput
from posttrain.hooks import Passage
from posttrain.recipes.texts import passages
from posttrain.rows import Document
from posttrain.tables import read_table

PASSAGE_WORDS = 200
"""Longest passage; a longer document has several."""


class Corpus:
    """One file of documents, `{"text": …}` a row."""

    def __init__(self, file: Path) -> None:
        """Nothing is read before the first query.

        Raises:
            BadInput: there is no such file.
        """
        if not file.is_file():
            raise BadInput(f"{file}: expected a .jsonl or .parquet file of texts")
        self._file = file

    def retrieve(self, query: str, k: int) -> list[Passage]:
        """The k passages whose words are nearest to the query's, best first; fewer if there are.

        A passage that shares no word with the query is none of them.
        """
        passages, vectorizer, vectors = self._index
        scores = (vectors @ vectorizer.transform([query]).T).toarray()[:, 0]
        order = sorted(np.flatnonzero(scores), key=lambda at: (-scores[at], passages[at].id))
        return [
            Passage(passages[at].id, passages[at].text, round(float(scores[at]), 6))
            for at in order[:k]
        ]

    def passages(self) -> list[Passage]:
        """All of them, in the file's order."""
        return list(self._index[0])

    @cached_property
    def _index(self) -> tuple[list[Passage], Any, Any]:
        table = read_table(self._file, Document)
        table.check_share(0.0, "fix them")
        found = []
        for row in table.rows:
            for place, text in enumerate(passages(row.text, PASSAGE_WORDS)):
                found.append(Passage(f"{row.id}#{place}" if place else row.id, text, 0.0))
        if not found:
            raise BadInput(f"{self._file}: holds no text")
        vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
        return found, vectorizer, vectorizer.fit_transform([one.text for one in found])


class Corpora:
    """Corpora by name."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Nothing is read yet."""
        self._corpora = {name: Corpus(file) for name, file in files.items()}

    def __getitem__(self, name: str) -> Corpus:
        """The corpus of that name.

        Raises:
            BadInput: the recipe names no such corpus.
        """
        if name not in self._corpora:
            known = sorted(self._corpora) or "none"
            raise BadInput(f"corpus {name} is none of the recipe's corpora, which are {known}")
        return self._corpora[name]
