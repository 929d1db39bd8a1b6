"""Expert branches: raw text as rows, continued pre-training, and a recipe that samples from one."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import BadInput
from posttrain.models.chat import load_tokenizer
from posttrain.models.files import end_of_text
from posttrain.models.folders import load_causal
from posttrain.rows import Document
from posttrain.training.packing import PaddedRows
from posttrain.training.pretrain import train_text
from posttrain.training.text import text_tokens, tokens_by_source
from tests.small_round import at, manifest, new_workspace, published, write_lines
from tests.test_training import documents, job, pretraining
from tests.tiny_model import make_model, make_tokenizer

END = 4
TOKENIZER = make_tokenizer()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "model")


def pieces_of(row: Any) -> list[tuple[int, list[int]]]:
    """Place of the document and tokens, of each piece of a row."""
    starts = [*np.flatnonzero(row["position_ids"] == 0), len(row["position_ids"])]
    parts = [row["input_ids"][a:b].tolist() for a, b in itertools.pairwise(starts)]
    return list(zip(row["rows"].tolist(), parts, strict=True))


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=2, max_size=30),
    share=st.floats(0.1, 0.9).map(lambda x: round(x, 2)),
    max_length=st.integers(8, 40),
    max_repeat=st.integers(1, 3),
)
def test_every_drawn_document_stands_in_the_rows_whole(
    lengths: list[int], share: float, max_length: int, max_repeat: int
) -> None:
    texts = ["red " * length + str(number) for number, length in enumerate(lengths)]
    rows = [Document(text=text, source="ab"[n % 2]) for n, text in enumerate(texts)]
    sources = {
        "a": {"files": ["a"], "share": share},
        "b": {"files": ["b"], "share": round(1 - share, 2)},
    }
    wanted = pretraining(sources=sources, max_repeat=max_repeat)
    kept, dropped = text_tokens(TOKENIZER, END, rows, wanted, max_length)
    seen: dict[int, int] = {}
    tokens: dict[int, list[list[int]]] = {}
    for row in kept:
        assert 0 < len(row["input_ids"]) <= max_length
        assert (row["labels"][row["position_ids"] == 0] == -100).all()
        inside = row["position_ids"] > 0
        assert (row["labels"][inside] == row["input_ids"][inside]).all()
        for place, part in pieces_of(row):
            tokens.setdefault(place, []).append(part)
    start = TOKENIZER.bos_token_id
    for place, parts in tokens.items():
        whole = [start, *TOKENIZER(rows[place].text, add_special_tokens=False)["input_ids"], END]
        number, rest = divmod(sum(map(len, parts)), len(whole))
        assert rest == 0, "a document is cut"
        assert 1 <= number <= max_repeat + 1
        seen[place] = number
        expected = [part.tolist() for part in np.array_split(whole, -(-len(whole) // max_length))]
        assert sorted(parts) == sorted(expected * number)
    left = {row_id for row_id, _ in dropped}
    assert left == {row.id for place, row in enumerate(rows) if place not in seen}
    read = tokens_by_source(kept, rows)
    total, longest = sum(read.values()), 2 + 91
    for name, source in wanted.sources.items():
        # A share is met to within the document that was drawn last.
        assert abs(read[name] - total * source.share) <= 2 * longest


def test_documents_of_a_row_are_blind_to_each_other(base: Path) -> None:
    rows = [Document(text=f"red {n}", source="ab"[n % 2]) for n in range(40)]
    kept, _ = text_tokens(load_tokenizer(base), END, rows, pretraining(), 64)
    row = max(kept, key=lambda one: len(one["rows"]))
    assert len(row["rows"]) > 2
    model = load_causal(base).eval()
    batch = PaddedRows(5)([row, kept[-1]])
    with torch.no_grad():
        names = ("input_ids", "position_ids")
        together = model(**{name: batch[name] for name in names}, use_cache=False).logits[0]
        start = 0
        for _, part in pieces_of(row):
            alone = model(input_ids=torch.tensor([part])).logits[0]
            assert torch.allclose(together[start : start + len(part)], alone, atol=1e-5)
            start += len(part)


def test_pretraining_learns_the_text_and_anneals(base: Path, tmp_path: Path) -> None:
    report = train_text(
        base, documents(), tmp_path / "out", pretraining(epochs=2), job(tmp_path / "work")
    )
    assert report.metrics["loss"] < report.metrics["first_loss"] - 0.5
    lines = [json.loads(one) for one in (tmp_path / "work/metrics.jsonl").read_text().splitlines()]
    rates = [one["learning_rate"] for one in lines]
    assert rates[-1] < max(rates) / 5
    annealed = rates[rates.index(max(rates)) :]
    assert all(one > other for one, other in itertools.pairwise(annealed))
    # Rows are read twice.
    assert report.metrics["tokens"] == 2 * sum(report.metrics[f"tokens/{name}"] for name in "ab")
    assert end_of_text(tmp_path / "out") == end_of_text(base)


def test_a_source_without_documents_is_bad_input(base: Path, tmp_path: Path) -> None:
    rows = [row for row in documents() if row.source == "a"]
    with pytest.raises(BadInput, match=r"sources.b: no document is left"):
        train_text(base, rows, tmp_path / "out", pretraining(), job(tmp_path / "work"))


EXPERT = """
experts:
  sums:
    sources:
      sums: {files: [data/sums.jsonl], share: 0.9}
      web: {files: [data/web.jsonl], share: 0.1}
    max_steps: 2
    batch_size: 2
    max_length: 64
"""
VARIED = {
    "sft.variants": {"a": {}, "b": {"init": "rounds/tiny/base", "mix": {"math": 1.5}}},
    "dpo.variants": {"a": {"init": "sft-b"}, "b": {"data_seed": 1}},
    "dpo.average": {"method": "uniform"},
    "recipes.math.policy": {"expert": "sums"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose plan has an expert."""
    made = new_workspace(tmp_path_factory.mktemp("expert") / "ws")
    plan = made / "rounds" / "small.yaml"
    plan.write_text(plan.read_text() + EXPERT)
    rows = [{"text": f"{n}+{n}={2 * n}"} for n in range(200)]
    write_lines(made / "data" / "sums.jsonl", [*rows, {"text": "<|eot_id|>"}, {"text": ""}])
    write_lines(made / "data" / "web.jsonl", [{"text": f"page {n}"} for n in range(30)])
    return made


def options() -> list[str]:
    given = [f"{key}={json.dumps(value)}" for key, value in VARIED.items()]
    return [word for one in given for word in ("--set", one)]


def lines_of(folder: Path, step: str, name: str) -> list[Any]:
    """Rows of a published table."""
    text = (published(folder, step) / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_recipe_samples_from_an_expert_and_variants_start_where_they_say(folder: Path) -> None:
    ended = at(folder, "round", "1", *options())
    assert ended.code == 0, ended.err
    branch = manifest(folder, "round-0/pretrain-sums")
    dropped = lines_of(folder, "round-0/pretrain-sums", "dropped")
    reasons = [row["reason"].partition(":")[0] for row in dropped]
    assert reasons.count("control token in the text") == 1
    assert reasons.count("malformed") == 1
    assert branch["metrics"]["tokens/sums"] > 5 * branch["metrics"]["tokens/web"]
    expert = manifest(folder, "round-0/expert-sums")
    assert expert["inputs"]["base"] == "round-0/pretrain-sums"
    sampled = lines_of(folder, "round-1/sample", "responses")
    assert {row["model"] for row in sampled} == {"round-0/expert-sums"}
    assert manifest(folder, "round-1/dpo-a")["inputs"]["sft"] == "round-1/sft-b"
    assert manifest(folder, "round-1/dpo-b")["inputs"]["sft"] == "round-1/sft"
    a, b = (manifest(folder, f"round-1/sft-{name}")["metrics"]["rows"] for name in "ab")
    assert 1.2 < b / a < 1.8


def test_a_document_with_a_held_out_prompt_is_never_read(folder: Path) -> None:
    held = lines_of(folder, "round-0/heldout", "test")[0]
    question = held["prompt"][-1]["content"]
    sums = folder / "data" / "sums.jsonl"
    whole = sums.read_bytes()
    sums.write_bytes(whole + b"\n" + json.dumps({"id": "leak", "text": question}).encode())
    ended = at(folder, "round", "1", "--redo-stale", *options())
    assert ended.code == 0, ended.err
    lost = lines_of(folder, "round-0/pretrain-sums", "dropped")
    assert [one["heldout"] for one in lost if one["id"] == "leak"] == [held["id"]]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("recipes.math.policy", {"expert": "code"}, "code is none of the plan's experts"),
        ("experts.sums.sources.web.share", 0.5, "shares sum to 1.4"),
        ("sft.variants", {"a": {"mix": {"code": 2}}}, "sft.variants.a.mix: code is not in mix"),
        ("dpo.variants", {"a": {"init": "sft-z"}, "b": {}}, "sft-z"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    folder: Path, key: str, value: object, message: str
) -> None:
    ended = at(folder, "plan", "1", "--set", f"{key}={json.dumps(value)}")
    assert ended.code == 2
    assert message in ended.one_line()
