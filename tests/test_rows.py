"""Rows: what a dialog, a preference and a judgment may be, and which split a prompt belongs to."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from posttrain.rows import (
    Example,
    Judgment,
    Message,
    Preference,
    Prompt,
    Split,
    Strength,
    Task,
    canonical_json,
    check_dialog,
    content_id,
    prompt_hash,
    split_of,
    stable_seed,
)

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
SHARES = st.floats(0, 0.45)


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def answer(text: str) -> list[dict[str, Any]]:
    return [turn("assistant", text)]


def user(text: str) -> Message:
    return Message(role="user", content=text)


def preference(**fields: Any) -> Preference:
    return Preference.model_validate(
        {"prompt": [turn("user", "2+2=?")], "strength": "better", **fields}
    )


CALL = {"tool_calls": [{"name": "add", "arguments": {"a": 1}}]}


@pytest.mark.parametrize(
    ("dialog", "complaint"),
    [
        ([turn("assistant", "4")], "turn 0 is assistant, expected user"),
        ([turn("user", "a"), turn("user", "b")], "turn 1 is user, expected assistant"),
        (
            [turn("user", "a"), turn("assistant", "b"), turn("assistant", "c")],
            "turn 2 is assistant, expected user",
        ),
        ([turn("user", "a"), turn("system", "b")], "turn 1 is system, expected assistant"),
        (
            [turn("system", "s"), turn("system", "t"), turn("user", "a")],
            "turn 0 is system, expected user",
        ),
        ([turn("user", "a"), turn("tool", "3")], "turn 1 is tool, expected assistant"),
        (
            [turn("user", "a"), turn("assistant", "b"), turn("tool", "3")],
            "turn 2 is tool, expected user",
        ),
        (
            [turn("user", "a"), turn("assistant", "", **CALL), turn("user", "b")],
            "turn 2 is user, expected tool",
        ),
        ([turn("user", " \n")], r"turn 0 \(user\) is empty"),
        ([turn("user", "a"), turn("assistant", " ")], r"turn 1 \(assistant\) is empty"),
    ],
)
def test_a_malformed_dialog_names_its_turn(dialog: list[dict[str, Any]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_dialog([Message.model_validate(one) for one in dialog])


def test_tools_answer_the_turn_that_called_them() -> None:
    called = [turn("user", "1+1"), turn("assistant", "", **CALL), turn("tool", "2")]
    Prompt.model_validate({"prompt": called, "capability": "tool_use"})
    Prompt.model_validate({"prompt": [*called, turn("tool", "3")], "capability": "tool_use"})
    row = Example.model_validate({"messages": [*called, *answer("2")], "capability": "tool_use"})
    assert [m.role for m in row.messages] == ["user", "assistant", "tool", "assistant"]


def test_prompts_wait_for_an_answer_and_examples_have_one() -> None:
    with pytest.raises(ValidationError, match="a prompt ends with a user turn, not assistant"):
        Prompt.model_validate({"prompt": [turn("user", "a"), *answer("b")], "capability": "math"})
    with pytest.raises(ValidationError, match="an example ends with an assistant turn, not user"):
        Example.model_validate({"messages": [turn("user", "a")], "capability": "math"})
    with pytest.raises(ValidationError, match="ends with a user turn, not system"):
        Prompt.model_validate({"prompt": [turn("system", "a")], "capability": "math"})
    with pytest.raises(ValidationError):
        Prompt.model_validate({"prompt": [], "capability": "math"})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"chosen": answer("4"), "rejected": answer("4")}, "responses of the ranking are equal"),
        (
            {"chosen": answer("4"), "rejected": answer("5"), "edited": answer("5")},
            "edited equals rejected",
        ),
        (
            {"chosen": answer("4"), "rejected": answer("5"), "edited": answer("4")},
            "responses of the ranking are equal",
        ),
        ({"chosen": answer("4")}, "give either chosen and rejected, or ranked"),
        ({}, "give either chosen and rejected, or ranked"),
        ({"ranked": [answer("4")]}, "at least two responses"),
        ({"ranked": [answer("4"), answer("5"), answer("4")]}, "responses of the ranking are equal"),
        ({"ranked": [answer("4"), answer("5")], "chosen": answer("6")}, "leave out chosen"),
        ({"chosen": answer(" "), "rejected": answer("5")}, "turn 1 .assistant. is empty"),
        ({"chosen": [turn("user", "4")], "rejected": answer("5")}, "turn 1 is user"),
        (
            {"chosen": answer("4"), "rejected": [*answer("5"), turn("user", "6")]},
            "a response ends with an assistant turn, not user",
        ),
        ({"chosen": answer("4"), "rejected": answer("5"), "strength": "much better"}, "strength"),
    ],
)
def test_what_is_no_preference(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        preference(**fields)


@given(st.lists(WORDS, min_size=2, max_size=6, unique=True))
def test_a_ranking_keeps_its_order(texts: list[str]) -> None:
    row = preference(ranked=[answer(text) for text in texts])
    assert [response[-1].content for response in row.ranking()] == texts


def test_an_edit_is_better_than_the_chosen_response() -> None:
    row = preference(chosen=answer("4"), rejected=answer("5"), edited=answer("four"))
    assert [response[-1].content for response in row.ranking()] == ["four", "4", "5"]


def test_strengths_go_from_marginal_to_significant() -> None:
    assert [one.value for one in sorted(Strength, key=lambda one: one.level)] == [
        "marginally better",
        "slightly better",
        "better",
        "significantly better",
    ]


@pytest.mark.parametrize(
    ("choice", "strength"), [("tie", "better"), ("skip", "better"), ("a", None), ("b", None)]
)
def test_strength_belongs_to_a_choice(choice: str, strength: str | None) -> None:
    with pytest.raises(ValidationError, match="strength belongs to choice a or b"):
        Judgment.model_validate(
            {"task": "t", "choice": choice, "annotator": "p", "strength": strength}
        )


def test_a_task_needs_two_models() -> None:
    with pytest.raises(ValidationError, match="both responses come from base"):
        Task.model_validate(
            {
                "prompt": [turn("user", "2+2=?")],
                "a": answer("4"),
                "b": answer("5"),
                "model_a": "base",
                "model_b": "base",
                "capability": "math",
                "batch": "round-1",
            }
        )


@given(WORDS, st.text(st.sampled_from(" \t\n"), min_size=1), WORDS)
def test_system_prompts_and_white_space_do_not_change_a_prompt(
    text: str, space: str, system: str
) -> None:
    plain = [user(text)]
    steered = [Message(role="system", content=system), user(space + space.join(text.split()))]
    assert prompt_hash(steered) == prompt_hash(plain)
    assert split_of(steered, 0.3, 0.3) == split_of(plain, 0.3, 0.3)


@given(WORDS, WORDS)
def test_other_words_or_roles_are_another_prompt(one: str, other: str) -> None:
    same = one.split() == other.split()
    assert (prompt_hash([user(one)]) == prompt_hash([user(other)])) == same
    dialog = [user(one), Message(role="assistant", content=other), user(one)]
    assert prompt_hash(dialog) != prompt_hash([user(one)])


@given(WORDS, SHARES, SHARES)
def test_held_out_prompts_stay_held_out_when_shares_grow(
    text: str, dev: float, test: float
) -> None:
    """Test does not depend on dev's share, and what is in train was in train with smaller ones."""
    here = split_of([user(text)], dev, test)
    assert (here == "test") == (split_of([user(text)], 0.0, test) == "test")
    if here == "train":
        assert split_of([user(text)], dev / 2, test / 2) == "train"
    assert split_of([user(text)], 0.0, 0.0) == "train"


@given(SHARES, SHARES)
@settings(max_examples=10, deadline=None)
def test_splits_have_the_shares_that_were_asked_for(dev: float, test: float) -> None:
    num = 4000
    counts = Counter(split_of([user(f"question {i}")], dev, test) for i in range(num))
    # Five standard deviations of a binomial count.
    shares: dict[Split, float] = {"dev": dev, "test": test, "train": 1 - dev - test}
    for name, share in shares.items():
        assert abs(counts[name] / num - share) <= 5 * (share * (1 - share) / num) ** 0.5 + 1e-3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=4))
@settings(max_examples=40, deadline=None)
def test_ids_depend_on_content_and_not_on_the_order_of_keys(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert content_id(value) == content_id(turned)
    assert json.loads(canonical_json(value)) == value
    assert len(content_id(value)) == 16


@given(WORDS, WORDS, JSON)
def test_a_row_gets_the_same_id_however_it_is_made(text: str, rejected: str, extra: Any) -> None:
    data = {"prompt": [turn("user", text)], "capability": "math", "note": extra}
    from_file = Prompt.model_validate(data)
    made = Prompt.model_validate({**data, "prompt": (user(text),)})
    assert from_file.id == made.id == content_id(data)
    ranked = [answer(text), answer(rejected + "!!" + text)]
    row = preference(ranked=ranked)
    assert row.id == Preference(prompt=row.prompt, ranked=row.ranked, strength=row.strength).id


def test_a_row_keeps_its_own_id_and_its_extra_columns() -> None:
    row = Prompt.model_validate(
        {"id": "mine", "prompt": [turn("user", "a")], "capability": "math", "page": 7}
    )
    assert row.id == "mine"
    assert row.to_json()["page"] == 7


def test_a_value_that_is_no_json_gives_no_id() -> None:
    data = {"prompt": [turn("user", "a")], "capability": "math"}
    with pytest.raises(ValidationError, match="must be plain JSON"):
        Prompt.model_validate({**data, "when": object()})
    with pytest.raises(ValidationError, match="not JSON compliant"):
        Prompt.model_validate({**data, "score": float("nan")})


@given(st.lists(st.integers() | st.text(st.characters(codec="utf-8"))))
def test_seeds_are_stable_and_in_range(parts: list[Any]) -> None:
    assert 0 <= stable_seed(*parts) < 2**31
    assert stable_seed(*parts) == stable_seed(*parts)
    assert stable_seed(*parts, "more") != stable_seed(*parts)
