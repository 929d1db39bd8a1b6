"""Edit distances are Levenshtein's, and quick enough for long responses."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rows import Preference
from posttrain.similarity import by_edits, edit_similarity, without_alike

TOKENS = st.lists(st.integers(0, 3), max_size=12)


@given(TOKENS, TOKENS)
def test_the_similarity_is_levenshteins_over_the_longer_one(a: list[int], b: list[int]) -> None:
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        above, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
    longer = max(len(a), len(b))
    assert edit_similarity(a, b) == pytest.approx(1 - row[-1] / longer if longer else 1.0)


@given(TOKENS, TOKENS)
def test_similarity_is_one_only_for_equal_responses(a: list[int], b: list[int]) -> None:
    likeness = edit_similarity(a, b)
    assert 0 <= likeness <= 1
    assert (likeness == 1) == (a == b)
    assert likeness == edit_similarity(b, a)


@given(st.lists(st.text("ab ", min_size=1).filter(str.strip), min_size=2, unique=True), st.data())
def test_what_stays_is_unlike_and_what_goes_is_alike(texts: list[str], data: st.DataObject) -> None:
    limit = data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))
    row = Preference.model_validate(
        {
            "prompt": [{"role": "user", "content": "?"}],
            "ranked": [[{"role": "assistant", "content": text}] for text in texts],
            "strength": "better",
        }
    )
    distinct = without_alike(row, [by_edits(row, limit, lambda text: list(text.encode()))])
    for one in distinct.alike:
        better, worse = (texts[rank - 1] for rank in one.ranks)
        assert one.ranks[0] < one.ranks[1]
        assert (one.measure, one.value) == ("edit", edit_similarity(better, worse))
        assert one.value > limit
    gone = {one.ranks[1] for one in distinct.alike}
    left = [text for rank, text in enumerate(texts, 1) if rank not in gone]
    assert all(edit_similarity(a, b) <= limit for a, b in pairwise(left))
    if distinct.row is None:
        assert left == texts[:1]
    else:
        assert [response[0].content for response in distinct.row.ranking()] == left


def test_long_responses_take_no_time() -> None:
    a = [n * n % 997 for n in range(4000)]
    b = [n * n % 991 for n in range(4000)]
    begun = time.process_time()
    assert 0 <= edit_similarity(a, b) < 1
    assert time.process_time() - begun < 1
