"""Curation as its users see it: what is kept, what is dropped and why, and that nothing is lost."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.curation import Drop, map_assistant
from posttrain.curation.contract import Curated, CurationTools, Scored
from posttrain.curation.curate import curate
from posttrain.curation.decontaminate import held_out_in, index_heldout, worth_a_look
from posttrain.curation.topics import read_topics
from posttrain.dedup.prefixes import SharedPrefixes
from posttrain.embedding import Embedded, Embedder, embedder_folder
from posttrain.errors import BadInput, StepFailed
from posttrain.hooks import Grade
from posttrain.rows import Example, Message, Prompt
from posttrain.settings.base import parse
from posttrain.settings.pipeline import RULES, Decontaminate, Pipeline
from posttrain.shares import target_sizes
from posttrain.workspace import load_filters, load_functions

DATA_QUALITY = Path(__file__).parent.parent / "data_quality"


SHIPPED = load_functions(DATA_QUALITY / "rules.py")


def letters(texts: Sequence[str]) -> Embedded:
    """A small real embedder: counts of hashed letter pairs, as unit vectors."""
    vectors = np.zeros((len(texts), 64), np.float32)
    for row, text in enumerate(texts):
        for one, two in zip(" " + text, text + " ", strict=True):
            vectors[row, (ord(one) * 31 + ord(two)) % 64] += 1
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embedded(vectors / lengths, np.zeros(len(texts), bool))


def example(user: str, answer: str, capability: str = "math", **extra: Any) -> Example:
    return Example.model_validate(
        {
            "messages": [
                {"role": "user", "content": user},
                {"role": "assistant", "content": answer},
            ],
            "capability": capability,
            **extra,
        }
    )


def ask(text: str, **extra: Any) -> Prompt:
    messages = [{"role": "user", "content": text}]
    return Prompt.model_validate({"prompt": messages, "capability": "math", **extra})


def tools(**changes: Any) -> CurationTools:
    given: dict[str, Any] = {"rules": SHIPPED, "heldout": [], "shares": {"math": 1.0}}
    return CurationTools(**{**given, "embed": letters, **changes})


def pipeline(*order: str, **changes: Any) -> Pipeline:
    steps = [*order, *(s for s in ("decontaminate", "mix") if s not in order)]
    return parse(Pipeline, {"order": steps, **changes}, "test")


def reasons(curated: Curated) -> dict[str, str]:
    return {d.id: f"{d.step}: {d.reason}" for d in curated.dropped}


def answers(curated: Curated) -> list[str]:
    return sorted(e.messages[-1].content for e in curated.kept)


# Settings


def test_the_shipped_pipeline_is_the_documented_default() -> None:
    shipped = yaml.safe_load((DATA_QUALITY / "pipeline.yaml").read_text())
    assert parse(Pipeline, shipped, "pipeline.yaml") == Pipeline()
    assert set(RULES) <= set(SHIPPED)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dedup": {"treshold": 0.9}}, "did you mean threshold"),
        ({"dedup": {"threshold": 1.5}}, "dedup.threshold"),
        ({"order": ["decontaminate"]}, "mix comes last"),
        ({"order": ["mix"]}, "decontaminate is missing"),
        ({"order": ["clean", "clean", "decontaminate", "mix"]}, "listed twice"),
        ({"order": ["semantic_dedup", "quality", "decontaminate", "mix"]}, "put quality first"),
        ({"quality": {"keep": "judge", "use_judge": False}}, "use_judge"),
        ({"difficulty": {"level_bounds": [4, 2]}}, "easy < medium"),
        ({"clean": {"rules": ["a", "a"]}}, "listed twice"),
    ],
)
def test_wrong_settings_are_one_readable_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        parse(Pipeline, data, "pipeline.yaml")
    assert str(caught.value).startswith("pipeline.yaml: ")
    assert "\n" not in str(caught.value)


# Cleaning


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("strip_emoji", "Hi 😀! 3*4 # ❤️ 👨‍👩‍👧 🇩🇪 1️⃣", "Hi! 3*4 #"),
        ("strip_emoji", "`print('😀')` © 5", "`print('😀')` © 5"),
        ("calm_exclamations", "Great!!! Yes! It is 5! or n!", "Great! Yes. It is 5! or n!"),
        ("calm_exclamations", "a != b\n```\nstop!! now!!\n```", "a != b\n```\nstop!! now!!\n```"),
        ("drop_boilerplate_opening", "Sure! 46", "46"),
        ("drop_boilerplate_opening", "Certainly! Great question: 46", "46"),
        ("drop_boilerplate_opening", "sure enough, 46", "sure enough, 46"),
        ("drop_boilerplate_opening", "Sure!", "Sure!"),
        ("mask_pii", "Mail bo.b+x@mail.example.org, now.", "Mail [email], now."),
        ("mask_pii", "Call +49 30 1234567 or (415) 555-0123.", "Call [phone] or [phone]."),
        ("mask_pii", "Card 4111 1111 1111 1111 is valid.", "Card [card] is valid."),
        ("mask_pii", "4111 1111 1111 1112 and 12345678901234567", None),
        ("mask_pii", "12-34 = -22, 555-1234, 3.14159, 2024-01-31, 192.168.0.1, 10 000 000", None),
        ("mask_pii", "`a@b.example` and @someone at x.y", None),
        ("mask_pii", "key sk-" + "aB3" * 10, "key [key]"),
        ("fix_mojibake", "cafÃ© itâ€™s naïve Ünicode", "café it’s naïve Ünicode"),
    ],
)
def test_shipped_rules_modify(rule: str, before: str, after: str | None) -> None:
    after = before if after is None else after
    settings = pipeline("clean", clean={"rules": [rule]})
    (kept,) = curate([Scored(example("q 😀 Sure!!! x", before))], settings, tools()).kept
    assert kept.messages[-1].content == after
    assert kept.messages[0].content == "q 😀 Sure!!! x"
    assert kept.edits == (None if before == after else (rule,))


def test_cleaning_counts_changes_and_drops_what_rules_empty() -> None:
    rows = [
        Scored(example("a", "😀", id="empty")),
        Scored(example("b", "x <|eot_id|>", id="token")),
        Scored(example("c", "Sure! 4 😀", id="twice")),
        Scored(example("d", "5", id="plain")),
    ]
    curated = curate(rows, pipeline("clean"), tools())
    assert reasons(curated) == {
        "empty": "clean: drop_empty: empty answer",
        "token": "clean: drop_control_tokens: control token in the text",
    }
    assert curated.counts[0].modified["strip_emoji"] == 2
    edits = {e.id: e.edits for e in curated.kept}
    assert edits == {"twice": ("drop_boilerplate_opening", "strip_emoji"), "plain": None}
    alone = pipeline("clean", clean={"rules": ["strip_emoji"]})
    assert reasons(curate(rows, alone, tools())) == {
        "empty": "clean: the rules left no valid dialog"
    }


def test_a_users_rule_is_loaded_by_path_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from posttrain.curation import Drop, map_assistant\n"
        "def shout(row):\n    return map_assistant(row, str.upper)\n"
        "def no_x(row):\n    return Drop('has x') if 'x' in row.messages[-1].content else row\n"
        "def nothing(row):\n    return None\n"
        "def meddle(row):\n    return row.model_copy(update={'messages': row.messages[1:]})\n"
    )
    mine = tools(rules=load_functions(path))
    rows = [Scored(example("a", "abc")), Scored(example("b", "x", id="b"))]
    curated = curate(rows, pipeline("clean", clean={"rules": ["no_x", "shout"]}), mine)
    assert answers(curated) == ["ABC"]
    assert reasons(curated) == {"b": "clean: no_x: has x"}
    for rule, message in {
        "nothing": "got NoneType",
        "meddle": "only the text of assistant turns",
        "shuot": "did you mean shout",
    }.items():
        with pytest.raises(BadInput, match=message):
            curate(rows, pipeline("clean", clean={"rules": [rule]}), mine)


def test_map_assistant_returns_the_same_row_when_nothing_changes() -> None:
    row = example("a", "b")
    assert map_assistant(row, str.strip) is row
    assert Drop("x").reason == "x"


# Quality and difficulty


def scored_rows(num: int = 8) -> list[Scored]:
    """Scores 0 to num-1; the judge gives its maximum to the two worst, and no grade to the best."""
    return [
        Scored(
            example(f"q{i}", f"a{i}", id=f"r{i}"),
            score=float(i),
            grade=None if i == num - 1 else Grade(3 if i < 2 else 1, 3),
        )
        for i in range(num)
    ]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("union", {"r0", "r1", "r6", "r7"}),
        ("reward", {"r6", "r7"}),
        ("judge", {"r0", "r1"}),
        ("all", {f"r{i}" for i in range(8)}),
    ],
)
def test_quality_keeps_the_union_of_two_signals(keep: str, kept: set[str]) -> None:
    curated = curate(scored_rows(), pipeline("quality", quality={"keep": keep}), tools())
    assert {e.id for e in curated.kept} == kept
    note = curated.counts[0].notes["math"]
    assert (note["reward"], note["judge"], note["union"], note["both"]) == (2, 2, 4, 0)
    assert note["without_grade"] == 1


def test_quality_is_per_capability_ties_stay_and_people_always_do() -> None:
    rows = [
        *(Scored(example(f"m{i}", "a", id=f"m{i}"), score=100.0 + i // 3) for i in range(6)),
        *(Scored(example(f"c{i}", "a", "code", id=f"c{i}"), score=float(i)) for i in range(4)),
        Scored(example("h", "a", id="human"), score=-50.0, human=True),
        Scored(example("n", "a", id="nothing")),
    ]
    settings = pipeline("quality", mix={"max_repeat": 9})
    curated = curate(rows, settings, tools(shares={"math": 4 / 5, "code": 1 / 5}))
    assert {e.id for e in curated.kept} == {"m3", "m4", "m5", "c3", "human"}
    assert reasons(curated)["nothing"] == "quality: neither score nor grade"
    decisions = {e.id: e.model_extra["decisions"] for e in curated.kept if e.model_extra}
    assert decisions["m3"][0] == "quality: reward top 25%"
    assert decisions["human"][0] == "quality: written by a person"


def test_without_use_judge_grades_do_not_count() -> None:
    settings = pipeline("quality", quality={"use_judge": False})
    assert {e.id for e in curate(scored_rows(), settings, tools()).kept} == {"r6", "r7"}


def test_difficulty_comes_from_the_level_else_from_the_pass_rate() -> None:
    rows = [
        *(
            Scored(example(f"l{i}", "a", id=f"l{i}", pass_rate=1.0), prompt=ask("q", level=i))
            for i in range(1, 7)
        ),
        *(
            Scored(example(f"p{rate}", "a", id=f"p{rate}", pass_rate=rate), prompt=ask("q"))
            for rate in (1.0, 0.75, 0.5, 0.25, 0.1)
        ),
        Scored(example("u", "a", id="u")),
    ]
    curated = curate(rows, pipeline("difficulty"), tools())
    found = {e.id: e.model_extra["difficulty"] for e in curated.kept if e.model_extra}
    assert [found[f"l{i}"] for i in range(1, 7)] == [1, 1, 2, 2, 3, 3]
    assert [found[f"p{r}"] for r in (1.0, 0.75, 0.5, 0.25, 0.1)] == [1, 1, 2, 2, 3]
    assert found["u"] == 2
    assert curated.counts[0].notes["from unknown"] == 1
    wrong = Scored(example("w", "a", pass_rate="often"))
    with pytest.raises(BadInput, match="pass_rate is 'often'"):
        curate([wrong], pipeline("difficulty"), tools())


def test_difficulty_is_the_first_measure_that_a_row_has() -> None:
    def row(name: str, **columns: Any) -> Scored:
        return Scored(example(name, "a", id=name, **columns))

    rows = [
        row("judged", judged_difficulty=3, tags=["sum"], pass_rate=1.0),
        row("tagged", tags=["sum", "Sum!", "table"], pass_rate=0.0),
        row("many", tags=list("abcde")),
    ]
    found, notes = [], {}
    for by in (["level", "judge", "tags", "pass_rate"], ["pass_rate", "tags"]):
        curated = curate(rows, pipeline("difficulty", difficulty={"by": by}), tools(embed=None))
        found.append({e.id: e.model_extra["difficulty"] for e in curated.kept if e.model_extra})
        notes = curated.counts[0].notes
    assert found[0] == {"judged": 3, "tagged": 1, "many": 3}
    assert found[1] == {"judged": 1, "tagged": 3, "many": 3}
    assert (notes["from pass_rate"], notes["from tags"]) == (2, 1)
    wrong = row("wrong", judged_difficulty=4)
    with pytest.raises(BadInput, match="a judge's difficulty is 1 to 3, not 4"):
        curate([wrong], pipeline("difficulty"), tools())


# Duplicates


def test_of_equal_dialogs_the_best_stays_and_people_come_first() -> None:
    rows = [
        Scored(example("a", "1", id="low"), score=1.0),
        Scored(example("a", "1 ", id="high"), score=2.0),
        Scored(example("b", "2", id="machine"), score=9.0),
        Scored(example("b", "2", id="person"), human=True),
    ]
    curated = curate(rows, pipeline("exact_duplicates"), tools())
    assert {e.id for e in curated.kept} == {"high", "person"}
    keepers = {d.id: d.extra["keeper"] for d in curated.dropped}
    assert keepers == {"low": "high", "machine": "person"}


def test_rows_without_ids_of_their_own_may_be_equal() -> None:
    rows = [Scored(example("a", "1")), Scored(example("a", "1")), Scored(example("b", "1"))]
    curated = curate(rows, pipeline("exact_duplicates"), tools())
    assert (len(curated.kept), len(curated.dropped)) == (2, 1)
    with pytest.raises(BadInput, match="put exact_duplicates into the order"):
        curate(rows, pipeline(), tools())
    different = [Scored(example("a", "1", id="x")), Scored(example("b", "1", id="x"))]
    with pytest.raises(BadInput, match="two different rows have the id x"):
        curate(different, pipeline("exact_duplicates"), tools())


def near_rows() -> list[Scored]:
    text = "please name the longest river of the whole continent"
    return [
        Scored(example(text, "the danube", id="easy"), score=5.0, prompt=ask("q", level=1)),
        Scored(example(text + " ", "the danube.", id="hard"), score=1.0, prompt=ask("q", level=6)),
        Scored(example(text, "the danube!", "code", id="elsewhere"), score=1.0),
        *(
            Scored(example(f"{c}{c}{d}{d}", "x", id=c + d))
            for c, d in zip("aceg", "bdfh", strict=True)
        ),
    ]


def test_near_duplicates_lose_to_the_harder_row_of_their_capability() -> None:
    shares = {"math": 0.8, "code": 0.2}
    curated = curate(near_rows(), pipeline("difficulty", "semantic_dedup"), tools(shares=shares))
    (dropped,) = [d for d in curated.dropped if d.step == "semantic_dedup"]
    assert (dropped.id, dropped.extra["keeper"]) == ("easy", "hard")
    assert 0.95 <= dropped.extra["cosine"] <= 1
    assert "elsewhere" in {e.id for e in curated.kept}
    notes = curated.counts[1].notes
    assert notes["capability"] == {
        "code": {"rows": 1, "loss": 0.0},
        "math": {"rows": 6, "loss": 1 / 6},
    }
    assert notes["truncated"] == {"code": 0, "math": 0}


def test_losses_are_told_and_limited_by_source_and_topic(tmp_path: Path) -> None:
    def row(number: int, question: str, source: str) -> Scored:
        return Scored(example(question, "x", id=f"r{number:02}", source=source))

    same = "please name the longest river of the whole continent"
    pairs = [row(i, same + "." * i, "forum") for i in range(2)]
    others = [row(10 + i, f"{c}{c}{c}", "book") for i, c in enumerate("abcdefgh")]
    embedder = Embedder(embedder_folder("minilm", tmp_path), tmp_path)
    order = ("topics", "semantic_dedup")
    given = tools(embed=embedder.embed, topics=DATA_QUALITY / "topics.yaml")
    curated = curate([*pairs, *others], pipeline(*order), given)
    notes = curated.counts[1].notes
    assert notes["source"] == {
        "book": {"rows": 8, "loss": notes["source"]["book"]["loss"]},
        "forum": {"rows": 2, "loss": 0.5},
    }
    assert sum(one["rows"] for one in notes["topic"].values()) == 10
    # A share of two rows says nothing, unless the settings say so.
    with pytest.raises(StepFailed, match=r"source forum loses 50\.0%"):
        curate([*pairs, *others], pipeline(*order, dedup={"least_rows": 2}), given)


def test_too_great_a_loss_stops_the_step_and_names_the_capability() -> None:
    settings = pipeline("difficulty", "semantic_dedup", dedup={"max_loss": 0.1})
    with pytest.raises(StepFailed, match=r"math loses 16\.7%"):
        curate(near_rows(), settings, tools())
    with pytest.raises(BadInput, match="no embedder"):
        curate(near_rows(), settings, tools(embed=None))


@pytest.mark.parametrize("earlier", ["first", "rank"])
@pytest.mark.parametrize("step", ["semantic_dedup", "minhash"])
def test_rows_of_earlier_rounds_seed_what_is_kept(earlier: str, step: str) -> None:
    text = "please name the longest river of the whole continent and say where it ends"
    rows = [
        Scored(example(text, "danube", id="new"), score=9.0),
        Scored(example(text, "danube .", id="old"), score=1.0, earlier=True),
        Scored(example(text, "danube ..", id="person"), human=True),
        *near_rows()[3:],
    ]
    settings = pipeline(step, dedup={"max_loss": 0.5, "earlier": earlier})
    curated = curate([row for row in rows if not row.human], settings, tools())
    keepers = {d.id: d.extra["keeper"] for d in curated.dropped if d.step == step}
    assert keepers == ({"new": "old"} if earlier == "first" else {"old": "new"})
    curated = curate(rows, settings, tools())
    keepers = {d.id: d.extra["keeper"] for d in curated.dropped if d.step == step}
    assert keepers == {"new": "person", "old": "person"}


def test_minilm_finds_a_reworded_sum_and_keeps_different_ones(tmp_path: Path) -> None:
    embedder = Embedder(embedder_folder("minilm", tmp_path), tmp_path)
    rows = [
        Scored(example("12+34=?", "46", id="kept"), score=2.0),
        Scored(example("12 + 34 = ?", "46", id="reworded"), score=1.0),
        Scored(example("71+28=?", "99", id="other")),
        Scored(example("Who wrote Faust?", "Goethe", id="far")),
    ]
    settings = pipeline("semantic_dedup", dedup={"threshold": 0.99})
    curated = curate(rows, settings, tools(embed=embedder.embed))
    assert {d.id: d.extra["keeper"] for d in curated.dropped} == {"reworded": "kept"}


PREAMBLE = (
    "You will be given a question about the library's catalogue. Read it twice, think about what "
    "the reader wants, and answer in one sentence without repeating the question. " * 6
)


def test_a_beginning_that_many_rows_share_does_not_make_them_duplicates(tmp_path: Path) -> None:
    embedder = Embedder(embedder_folder("minilm", tmp_path), tmp_path)
    given = tools(embed=embedder.embed)
    asked = ["Who wrote Faust?", "How tall is a giraffe?", "Which river flows through Rome?"]
    texts = [f"{PREAMBLE}\n{asked[i % 3]} ({'abcdefghij'[i // 3] * 4})" for i in range(30)]
    rows = [Scored(example(text, "x", id=f"r{i:02}")) for i, text in enumerate(texts)]
    settings = pipeline("semantic_dedup", dedup={"threshold": 0.95, "max_loss": 1.0})
    assert len(curate(rows, settings, given).kept) > 20
    # Of few rows a common beginning is what may make them duplicates, and is looked at.
    assert len(curate(rows[:6], settings, given).kept) <= 3


def test_only_long_beginnings_of_many_texts_are_left_out() -> None:
    shared = SharedPrefixes()
    texts = [f"{PREAMBLE}\nsame line\nown {i}\nmore" for i in range(25)]
    for text in [*texts, *["short\nline"] * 30, *[f"{PREAMBLE}\nother {i}" for i in range(3)]]:
        shared.add(text)
    assert shared.without(texts[7]) == "own 7\nmore"
    assert shared.without(f"{PREAMBLE}\nother 1") == "other 1"
    assert shared.without("short\nline") == "short\nline"
    assert shared.without(f"{PREAMBLE}\n  ") == f"{PREAMBLE}\n  "
    assert shared.without("another text") == "another text"


# Filters of one's own

FILTERS = """
from posttrain.curation import Drop, map_assistant, table

def no_rivers(row):
    if row.model_extra["score"] < 0:
        return Drop("no river")
    return map_assistant(row, lambda text: text.replace("Danube", "river"))

@table
def one_a_source(rows):
    seen = set()
    for row in rows:
        yield Drop("source seen") if row.source in seen else row
        seen.add(row.source)

@table
def too_few(rows):
    return list(rows)[:-1]

@table
def shifted(rows):
    return list(rows)[1:]

def raises(row):
    return 1 / 0

def renames(row):
    return row.model_copy(update={"capability": "code"})

def answers_text(row):
    return "kept"
"""


def filtered(tmp_path: Path, name: str, *before: str) -> Curated:
    path = tmp_path / "filters.py"
    path.write_text(FILTERS)
    rows = [
        Scored(example(f"q{i}", f"The Danube {i}", id=f"r{i}", source=f"s{i // 2}"), score=2.0 - i)
        for i in range(4)
    ]
    held = ask("which? " + " ".join("abcdefghijklmnop"))
    settings = pipeline(*before, name, filters={name: "filters.py"})
    return curate(rows, settings, tools(filters=load_filters({name: path}), heldout=[held]))


def test_a_filter_of_ones_own_keeps_changes_and_drops(tmp_path: Path) -> None:
    curated = filtered(tmp_path, "no_rivers", "exact_duplicates", "minhash")
    assert reasons(curated) == {"r3": "no_rivers: no river"}
    assert answers(curated) == ["The river 0", "The river 1", "The river 2"]
    assert all(e.edits == ("no_rivers",) for e in curated.kept)
    assert curated.counts[2].modified == {"no_rivers": 3}


def test_steps_behind_a_filter_see_what_it_wrote() -> None:
    """Else a filter could write a held-out prompt, or two rows that are one."""
    words = " ".join("abcdefghijklmnop")

    def writes(row: Example) -> Example:
        return map_assistant(row, lambda text: words if text.startswith("leak") else "same")

    def row(name: str, question: str, answer: str) -> Scored:
        return Scored(example(question, answer, id=name))

    rows = [row("a", "q", "one"), row("b", "q", "two"), row("c", "z", "leak"), row("d", "y", "4")]
    settings = pipeline("writes", "exact_duplicates", filters={"writes": "x.py"})
    given = tools(filters={"writes": writes}, heldout=[ask(words)])
    curated = curate(rows, settings, given)
    assert sorted(reasons(curated).values()) == [
        "decontaminate: 13-grams of a held-out prompt",
        "exact_duplicates: equal dialog",
    ]
    assert answers(curated) == ["same", "same"]


def test_a_filter_over_all_rows_is_called_once(tmp_path: Path) -> None:
    curated = filtered(tmp_path, "one_a_source")
    assert reasons(curated) == {
        "r1": "one_a_source: source seen",
        "r3": "one_a_source: source seen",
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_few", "3 answers for 4 rows"),
        ("shifted", "row r0: answered with row r1"),
        ("raises", "raises: row r0 raised ZeroDivisionError"),
        ("renames", "row r0: only the text of assistant turns"),
        ("answers_text", "got str for row r0"),
        ("missing", r"filters.missing: data_quality/filters.py defines no function missing"),
    ],
)
def test_a_filter_that_misbehaves_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises((BadInput, StepFailed), match=message):
        filtered(tmp_path, name)


def test_a_filter_has_its_place_in_the_order() -> None:
    for changes, message in [
        ({"order": ["shorts", "decontaminate", "mix"]}, "order: no step or filter shorts"),
        ({"order": ["minhsh", "decontaminate", "mix"]}, "did you mean minhash"),
        ({"filters": {"mine": "a.py"}}, "put mine into the order"),
        ({"filters": {"mix": "a.py"}}, "a step has this name"),
    ]:
        with pytest.raises(BadInput, match=message):
            parse(Pipeline, changes, "test")


# Phrases


def test_the_worst_rows_of_a_family_go_until_it_has_its_share() -> None:
    rows = [
        Scored(
            example(f"q{i}", f"I\u2019m SORRY, {i}" if i < 8 else f"It is {i}.", id=f"r{i:02}"),
            score=float(-i),
            human=i == 7,
        )
        for i in range(20)
    ]
    settings = pipeline("balance", balance={"max_share": 0.25, "find": False})
    curated = curate(rows, settings, tools())
    # 8 of 20 hold it; without 4 of them 4 of 16 do. The one by a person stays, though it is worst.
    assert {d.id for d in curated.dropped} == {"r03", "r04", "r05", "r06"}
    assert set(reasons(curated).values()) == {"balance: overused: apology"}
    assert curated.counts[0].notes["apology"] == {"share": 0.4, "target": 0.25, "dropped": 4}


def test_openings_are_compared_with_those_of_people() -> None:
    def row(number: int, opening: str, human: bool, capability: str = "math") -> Scored:
        text = f"{opening} {number}"
        told = example(f"q{number}", text, capability, id=f"{capability}{human}{number}")
        return Scored(told, score=float(number), human=human)

    people = [row(i, "So the sum is" if i < 10 else "We find", True) for i in range(50)]
    model = [
        row(i, "Certainly, here is" if i < 40 else "So the sum is" if i < 70 else "{x:", False)
        for i in range(100)
    ]
    # Without people to compare with nothing is found.
    other = [row(i, "Certainly, here is", False, "code") for i in range(30)]
    settings = pipeline("balance", balance={"max_share": 0.1}, mix={"max_repeat": 9})
    shares = {"math": 0.5, "code": 0.5}
    curated = curate([*people, *model, *other], settings, tools(shares=shares))
    found = {name: note["target"] for name, note in curated.counts[0].notes.items()}
    assert found == {"math opens with 'certainly here is'": 0.1}
    gone = [d.id for d in curated.dropped if d.step == "balance"]
    # 40 of 150, and 12 of the 122 that are left.
    assert sorted(gone) == sorted(f"mathFalse{i}" for i in range(28))


def test_dialogs_of_a_capability_that_share_their_wording_lose_to_the_best() -> None:
    words = "the old town lies on a hill above the river and its bridge is made of stone".split()
    text = " ".join(words * 2)
    rows = [
        Scored(example("Describe it.", text, id="low"), score=1.0),
        Scored(example("Describe it.", f"{text}\nindeed", id="high"), score=2.0),
        Scored(example("Describe it.", text, "code", id="elsewhere"), score=0.0),
        Scored(example("Describe it.", " ".join(reversed(words * 2)), id="other"), score=0.0),
    ]
    shares = {"math": 0.6, "code": 0.4}
    curated = curate(rows, pipeline("minhash"), tools(shares=shares))
    (gone,) = [d for d in curated.dropped if d.step == "minhash"]
    assert (gone.id, gone.reason, gone.extra["keeper"]) == ("low", "shared wording", "high")
    assert 0.8 <= gone.extra["jaccard"] < 1


# Topics


def test_topics_are_learned_from_a_few_prompts_and_may_drive_the_mix(tmp_path: Path) -> None:
    embedder = Embedder(embedder_folder("minilm", tmp_path), tmp_path)
    asked = {
        "mathematics": ["What is 81 minus 27?", "Solve 2x = 14 for x."],
        "programming": ["Write a Java method that sorts an array.", "Fix the bug in my C code."],
        "everyday life": ["How do I bake bread?", "Plan three days in Rome."],
    }
    rows = [
        Scored(example(text, "Here you are.", id=text))
        for texts in asked.values()
        for text in texts
    ]
    things = tools(
        embed=embedder.embed,
        topics=DATA_QUALITY / "topics.yaml",
        shares={"mathematics": 0.5, "programming": 0.5},
    )
    curated = curate(rows, pipeline("topics", mix={"by": "topic"}), things)
    found = {e.id: e.model_extra["topic"][0] for e in curated.kept if e.model_extra}
    expected = {text: name for name, texts in asked.items() for text in texts}
    del expected["How do I bake bread?"], expected["Plan three days in Rome."]
    assert found == expected
    assert set(reasons(curated).values()) == {"mix: no share in the mix"}
    assert curated.counts[0].notes == dict.fromkeys(asked, 2)
    sure = pipeline("topics", topics={"least_probability": 1.0})
    assert curate(rows, sure, tools(**{**vars(things), "shares": {}})).counts[0].notes == {
        "other": 6
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: {}", "a: expected fine topics with prompts"),
        ("a: {b: [1]}", "a: b: expected a list of prompts"),
        ("a: {b: [x]}", "expected two topics or more"),
    ],
)
def test_wrong_topics_are_told(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "topics.yaml").write_text(text)
    with pytest.raises(BadInput, match=line):
        read_topics(tmp_path / "topics.yaml")


# Decontamination


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), min_size=1, max_size=8),
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), max_size=8),
)
def test_no_dialog_that_holds_a_held_out_prompt_is_passed_over(
    dialogs: list[list[str]], heldout: list[list[str]]
) -> None:
    index = index_heldout([ask(" ".join(words)) for words in heldout], 3)
    rows = [example(" ".join(one), "A b; c\nd") for one in dialogs]
    looks = worth_a_look([row.messages for row in rows], index, 3)
    limits = Decontaminate(ngram=3, overlap=0.5)
    for row, look in zip(rows, looks, strict=True):
        assert look or held_out_in(row.messages, index, limits) is None


def test_held_out_prompts_are_found_whole_and_in_pieces() -> None:
    long = "A train leaves the old station at nine and needs three hours to cross the wide valley"
    heldout = [ask("12+34=?", id="short"), ask(long, id="long")]
    system = Message(role="system", content="Be brief.")
    turns = [Message(role="user", content="hello"), Message(role="assistant", content="hi")]
    asked = [Message(role="user", content="12+34=? "), Message(role="assistant", content="46")]
    rows = [
        Scored(example("12+34=?", "46", id="same"), human=True),
        Scored(Example(id="steered", messages=(system, *asked), capability="math")),
        Scored(Example(id="second", messages=(*turns, *asked), capability="math")),
        Scored(example(f"Read this. {long.upper()}! When does it arrive?", "noon", id="inside")),
        Scored(example("12+34=46?", "yes", id="free")),
        Scored(example("A train leaves the old station at nine", "ok", id="part")),
    ]
    curated = curate(rows, pipeline(), tools(heldout=heldout))
    assert {e.id for e in curated.kept} == {"free", "part"}
    hits = {d.id: d.extra["heldout"] for d in curated.dropped}
    assert hits == {"same": "short", "steered": "short", "second": "short", "inside": "long"}
    assert reasons(curated)["inside"] == "decontaminate: 13-grams of a held-out prompt"


# The mix


@pytest.mark.parametrize(
    ("num_rows", "shares", "settings", "sizes"),
    [
        ({"a": 100, "b": 100}, {"a": 0.5, "b": 0.5}, {}, {"a": 100, "b": 100}),
        ({"a": 100, "b": 10}, {"a": 0.5, "b": 0.5}, {"max_repeat": 4}, {"a": 40, "b": 40}),
        ({"a": 100, "b": 30}, {"a": 0.5, "b": 0.5}, {"max_repeat": 4}, {"a": 100, "b": 100}),
        ({"a": 100, "b": 100}, {"a": 0.9, "b": 0.1}, {"max_total": 50}, {"a": 45, "b": 5}),
        ({"a": 10}, {"a": 0.3, "b": 0.7}, {}, {"a": 10}),
        ({"a": 10, "c": 5}, {"a": 1.0}, {}, {"a": 10}),
    ],
)
def test_target_sizes(
    num_rows: dict[str, int],
    shares: dict[str, float],
    settings: dict[str, int],
    sizes: dict[str, int],
) -> None:
    assert target_sizes(num_rows, shares, **{"max_repeat": 4, **settings}) == sizes


@given(
    num_rows=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 60), min_size=1),
    weights=st.lists(st.integers(0, 20), min_size=4, max_size=4),
    max_repeat=st.integers(1, 5),
    max_total=st.none() | st.integers(1, 80),
)
def test_target_sizes_keep_shares_and_repeats(
    num_rows: dict[str, int], weights: list[int], max_repeat: int, max_total: int | None
) -> None:
    whole = sum(weights) or 1
    shares = {c: w / whole for c, w in zip("abcd", weights, strict=True)}
    sizes = target_sizes(num_rows, shares, max_repeat, max_total)
    total, wanted = sum(sizes.values()), sum(shares[c] for c in sizes)
    for capability, size in sizes.items():
        assert size <= num_rows[capability] * max_repeat
        assert abs(size - total * shares[capability] / wanted) < 1.001
    assert total <= (max_total or total)


def test_the_mix_repeats_small_sources_and_drops_the_worst_of_large_ones() -> None:
    rows = [
        *(Scored(example(f"m{i}", "a", id=f"m{i}"), score=float(i)) for i in range(9)),
        Scored(example("mh", "a", id="mh"), human=True),
        *(Scored(example(f"c{i}", "a", "code", id=f"c{i}"), score=float(i)) for i in range(2)),
        Scored(example("s", "a", "stray", id="s")),
    ]
    shares = {"math": 0.5, "code": 0.3, "tools": 0.2}
    curated = curate(rows, pipeline(mix={"max_repeat": 2}), tools(shares=shares))
    assert {e.id: e.repeat for e in curated.kept} == {
        **dict.fromkeys(["mh", "m8", "m7", "m6", "m5", "m4"], 1),
        **{"c0": 2, "c1": 2},
    }
    assert reasons(curated)["m3"] == "mix: over share"
    assert reasons(curated)["s"] == "mix: no share in the mix"
    assert curated.mix["math"].achieved == 0.6
    assert curated.mix["code"] == (0.3, 0.4, 2, 4)
    assert curated.counts[-1].notes["missing"] == ["tools"]


def test_a_sub_mix_divides_a_share_among_where_rows_come_from() -> None:
    def row(name: str, source: str, human: bool = False) -> Scored:
        made = example(name, "a", id=name).model_copy(update={"source": source})
        return Scored(made, None if human else 1.0, human=human)

    rows = [
        *(row(f"h{i}", "a crew", human=True) for i in range(2)),
        *(row(f"n{i}", "nlp/questions", human=True) for i in range(8)),
        *(row(f"r{i}", "rejection sampling, round 1") for i in range(8)),
        *(row(f"s{i}", "math.synthesize/traces") for i in range(8)),
        row("x", "elsewhere"),
    ]
    weights = {"human": 1.0, "nlp": 4.0, "rejection sampling": 3.0, "math.synthesize": 2.0}
    extra = tools(shares={"math": 1.0}, sub_mixes={"math": weights})
    curated = curate(rows, pipeline(mix={"max_repeat": 1}), extra)
    counts = Counter(e.id[0] for e in curated.kept)
    assert counts == {"h": 2, "n": 8, "r": 6, "s": 4}
    assert reasons(curated)["x"] == "mix: no share in the sub_mix of math"
    assert sum(reason == "mix: over share" for reason in reasons(curated).values()) == 6


def test_nothing_left_is_an_error_that_says_where_it_went() -> None:
    held = [ask("q")]
    with pytest.raises(StepFailed, match=r"all rows dropped before mix: decontaminate 1 → 0"):
        curate([Scored(example("q", "a"))], pipeline(), tools(heldout=held))
    with pytest.raises(StepFailed, match="no rows left"):
        curate([Scored(example("q", "a"))], pipeline(), tools(shares={"code": 1.0}))
    with pytest.raises(BadInput, match="no rows to curate"):
        curate([], pipeline(), tools())
    with pytest.raises(BadInput, match="finite score"):
        curate([Scored(example("q", "a"), score=float("nan"))], pipeline(), tools())


# The whole


@st.composite
def scored(draw: st.DrawFn) -> Scored:
    user = draw(st.sampled_from(["12+34=?", "12+35=?", "reverse abc", "what is a river", "x" * 9]))
    answer = draw(st.sampled_from(["46", "Sure! 46", "cba 😀", "😀", "water", "a <|eot_id|>"]))
    score = draw(st.none() | st.sampled_from([0.0, 1.0, 2.0]))
    grade = draw(st.none() | st.builds(Grade, st.integers(1, 3), st.just(3)))
    return Scored(
        example(user, answer, draw(st.sampled_from(["math", "code", "stray"])), score=score),
        score,
        grade,
        draw(st.none() | st.builds(lambda level: ask("p", level=level), st.integers(1, 6))),
        draw(st.booleans()),
    )


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(scored(), min_size=1, max_size=25), seed=st.integers(0, 99))
def test_every_row_is_kept_or_dropped_and_input_order_does_not_matter(
    rows: list[Scored], seed: int
) -> None:
    things = tools(shares={"math": 0.7, "code": 0.3}, heldout=[ask("x" * 9)])
    every = parse(Pipeline, {"dedup": {"max_loss": 1.0}}, "test")
    first = run(rows, every, things)
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert shown(run(shuffled, every, things)) == shown(first)
    if isinstance(first, Curated):
        ids = [e.id for e in first.kept] + [d.id for d in first.dropped]
        assert sorted(ids) == sorted(s.example.id for s in rows)
        assert len({e.id for e in first.kept}) == len(first.kept)
        for count in first.counts:
            assert count.rows_in == count.rows_out + sum(count.dropped.values())
        for kept in first.kept:
            steps = [d.split(":")[0] for d in (kept.model_extra or {})["decisions"]]
            assert steps == list(every.order)


def shown(result: Curated | str) -> object:
    """All that a result says."""
    if isinstance(result, str):
        return result
    dropped = [(d.id, d.step, d.reason, dict(d.extra), d.row.example) for d in result.dropped]
    return (list(result.kept), dropped, result.counts, result.mix)


def run(rows: list[Scored], settings: Pipeline, things: CurationTools) -> Curated | str:
    try:
        return curate(rows, settings, things)
    except StepFailed as error:
        return str(error)
