"""Deduplication against brute force, and the embedder's cache; MiniLM is the real one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.dedup import (
    Removal,
    dialog_hash,
    exact,
    exact_duplicates,
    ivf,
    products,
    semantic_dedup,
)
from posttrain.dedup.contract import Rule
from posttrain.dedup.semantic import Mode
from posttrain.embedding import Embedder, dialog_text, embedder_folder, read_cache, text_key
from posttrain.errors import BadInput
from posttrain.rows import Example, Message

CLUSTERED = {"mode": "clustered", "passes": 1}
TEXTS = ["12+34=?\n46", "Name a river.\nThe Rhine.", "reverse 'abc'\ncba", "12 + 34 = ?\n46"]


def unit(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)


def planted(seed: int, num: int, dimension: int = 8) -> np.ndarray:
    """Random directions, half of them noisy or plain copies of earlier ones, so chains occur."""
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=dimension)]
    while len(rows) < num:
        noise = rng.choice([0.0, 0.05, 0.2, 3.0])
        rows.append(rows[rng.integers(len(rows))] + noise * rng.normal(size=dimension))
    return unit(np.array(rows))


def brute_force(
    vectors: np.ndarray, order: list[int], threshold: float, rule: str, earlier: np.ndarray
) -> list[int]:
    before = [v.astype(np.float64) for v in earlier]
    removed = []
    for index in order:
        vector = vectors[index].astype(np.float64)
        cosines = [v @ vector / np.sqrt((v @ v) * (vector @ vector)) for v in before]
        gone = bool(cosines) and max(cosines) >= threshold - 1e-7
        if gone:
            removed.append(index)
        if not gone or rule == "seen":
            before.append(vector)
    return removed


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(1, 40),
    threshold=st.sampled_from([0.3, 0.8, 0.95, 0.999, 1.0]),
    rule=st.sampled_from(["kept", "seen"]),
    num_earlier=st.integers(0, 5),
    block=st.integers(1, 45),
)
def test_semantic_dedup_removes_what_brute_force_removes(
    seed: int, num: int, threshold: float, rule: str, num_earlier: int, block: int
) -> None:
    vectors = planted(seed, num + num_earlier)
    rows, earlier = vectors[num_earlier:], vectors[:num_earlier]
    order = [int(i) for i in np.random.default_rng(seed).permutation(num)]
    removals = semantic_dedup(rows, order, threshold, rule, earlier, block)  # type: ignore[arg-type]
    assert [r.row for r in removals] == brute_force(rows, order, threshold, rule, earlier)
    whole = np.concatenate([rows, earlier])
    place = {index: rank for rank, index in enumerate(order)}
    for removal in removals:
        cosine = float(whole[removal.row] @ whole[removal.keeper])
        assert cosine == pytest.approx(removal.similarity, abs=1e-6)
        assert removal.similarity >= threshold - 1e-7
        assert place.get(removal.keeper, -1) < place[removal.row]
        if rule == "kept":
            assert removal.keeper not in {r.row for r in removals}
    assert removals == semantic_dedup(rows, order, threshold, rule, earlier)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["kept", "seen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modes_agree_where_nothing_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, rule: Rule, dtype: torch.dtype
) -> None:
    for module in (products, exact, ivf):
        monkeypatch.setattr(module, "filter_dtype", lambda: dtype)
    vectors = planted(7, 520, dimension=32)
    rows, earlier = vectors[20:], vectors[:20]
    order = np.random.default_rng(1).permutation(500)
    expected = brute_force(rows, order.tolist(), 0.95, rule, earlier)
    assert 50 < len(expected) < 450
    monkeypatch.setattr(ivf, "BLOCK", 64)
    # All clusters are probed, and one pass over few rows has a single cluster.
    for options in ({"mode": "exact", "block": 100}, {"mode": "ivf", "probes": 600}, CLUSTERED):
        found = semantic_dedup(rows, order, 0.95, rule, earlier, **options)  # type: ignore[arg-type]
        assert [one.row for one in found] == expected
        assert found == semantic_dedup(rows, order, 0.95, rule, earlier, mode="exact")


def test_few_probes_miss_few_pairs_and_further_passes_find_more() -> None:
    vectors = planted(3, 4000, dimension=64)
    order = range(4000)
    whole = {one.row for one in semantic_dedup(vectors, order, 0.95)}
    probed = {one.row for one in semantic_dedup(vectors, order, 0.95, mode="ivf", seed=1)}
    once, thrice = (
        {one.row for one in semantic_dedup(vectors, order, 0.95, mode="clustered", passes=passes)}
        for passes in (1, 3)
    )
    assert len(whole) > 500
    assert len(probed ^ whole) <= 0.01 * len(whole)
    assert len(thrice ^ whole) <= len(once ^ whole)


@pytest.mark.parametrize("mode", ["exact", "ivf"])
def test_of_a_hot_cluster_one_row_stays(mode: Mode) -> None:
    rng = np.random.default_rng(0)
    hot = unit(np.eye(1, 64) + 0.01 * rng.normal(size=(5000, 64)))
    cold = unit(rng.normal(size=(15_000, 64)))
    vectors = np.concatenate([hot, cold])[(order := rng.permutation(20_000))]
    first = int(np.flatnonzero(order < 5000)[0])
    found = semantic_dedup(vectors, range(20_000), 0.95, mode=mode)
    assert {one.row for one in found} == set(np.flatnonzero(order < 5000)) - {first}
    assert {one.keeper for one in found} == {first}


def test_a_chain_is_no_component() -> None:
    angles = np.deg2rad([0, 15, 30, 45])
    chain = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    kept_rule = semantic_dedup(chain, range(4), threshold=0.95)
    seen_rule = semantic_dedup(chain, range(4), threshold=0.95, rule="seen")
    assert [(r.row, r.keeper) for r in kept_rule] == [(1, 0), (3, 2)]
    assert [(r.row, r.keeper) for r in seen_rule] == [(1, 0), (2, 1), (3, 2)]


def test_of_equal_vectors_the_first_in_order_stays_at_threshold_one() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(1, 384))).repeat(5, axis=0)
    removals = semantic_dedup(vectors, [3, 1, 0, 2, 4], threshold=1.0)
    assert [(r.row, r.keeper, r.similarity) for r in removals] == [
        (1, 3, 1.0),
        (0, 3, 1.0),
        (2, 3, 1.0),
        (4, 3, 1.0),
    ]


def test_earlier_rows_count_as_kept_and_are_named() -> None:
    vectors = np.eye(3, dtype=np.float32)
    assert semantic_dedup(vectors, [2, 1, 0], 0.9, earlier_ED=vectors[1:2]) == [Removal(1, 3, 1.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.01}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"order": [0, 0]}, "order"),
        ({"order": [2]}, "order"),
        ({"order": [-1]}, "order"),
        ({"vectors_ND": np.zeros((2, 3), np.float32)}, "unit vectors"),
        ({"vectors_ND": np.full((2, 3), np.nan, np.float32)}, "not finite"),
        ({"vectors_ND": np.ones(3, np.float32)}, "matrix"),
        ({"earlier_ED": np.eye(4, dtype=np.float32)}, "dimensions"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], message: str) -> None:
    good = {"vectors_ND": np.eye(3, dtype=np.float32)[:2], "order": [0, 1], "threshold": 0.9}
    with pytest.raises(BadInput, match=message):
        semantic_dedup(**{**good, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["exact", "ivf", "clustered"])
def test_a_row_that_is_not_named_is_not_looked_at(mode: Mode) -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1, 0]]
    assert semantic_dedup(vectors, [3, 2, 1], 0.9, mode=mode) == [Removal(1, 3, 1.0)]


def test_no_rows_are_no_removals() -> None:
    assert semantic_dedup(np.empty((0, 3), np.float32), [], 0.9) == []


def dialog(user: str, answer: str, system: str = "") -> Example:
    turns = [Message(role="user", content=user), Message(role="assistant", content=answer)]
    if system:
        turns.insert(0, Message(role="system", content=system))
    return Example(messages=tuple(turns), capability="code")


def test_exact_duplicates_fold_line_ends_but_not_indentation() -> None:
    rows = [
        dialog("a", "if x:\n  y\nz"),
        dialog("a", "if x:  \r\n  y\nz\n"),
        dialog("a", "if x:\n  y\n  z"),
        dialog("é", "1"),
        dialog("e\u0301", "1"),
        dialog("é", "1", system="Be brief."),
    ]
    assert exact_duplicates(rows) == [Removal(1, 0, 1.0), Removal(4, 3, 1.0)]
    assert exact_duplicates(rows[:1], earlier=rows[1:2]) == [Removal(0, 1, 1.0)]
    assert dialog_hash(rows[0]) == dialog_hash(rows[1])


def test_dialog_text_leaves_system_prompts_out_and_tool_calls_in() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = (
        Message(role="system", content="Long instructions"),
        Message(role="user", content="1+1"),
        Message(role="assistant", content="", tool_calls=(call,)),
    )
    assert dialog_text(messages).startswith('1+1\n{"function":')
    assert "Long" not in dialog_text(messages)


@pytest.fixture(scope="module")
def minilm() -> Path:
    return embedder_folder("minilm", Path("."))


@pytest.fixture(scope="module")
def filled(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    embedder = Embedder(minilm, tmp_path_factory.mktemp("cache"))
    embedder.embed(TEXTS)
    return embedder


def test_vectors_are_unit_in_order_and_the_same_bytes_from_the_cache(
    filled: Embedder, tmp_path: Path
) -> None:
    first = filled.embed(TEXTS)
    assert first.vectors_ND.shape == (4, 384)
    assert first.vectors_ND.dtype == np.float32
    assert np.linalg.norm(first.vectors_ND, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert not first.truncated_N.any()
    turned = Embedder(filled.model, tmp_path).embed([*TEXTS[::-1], TEXTS[0]])
    assert (turned.vectors_ND[:4][::-1] == first.vectors_ND).all()
    assert (turned.vectors_ND[4] == turned.vectors_ND[3]).all()
    cosines = first.vectors_ND @ first.vectors_ND.T
    assert cosines[0, 3] > 0.9 > 0.5 > cosines[0, 1]


def test_long_texts_are_flagged(filled: Embedder) -> None:
    long = "word " * 300
    embedded = filled.embed([long + "tail one", "short", long + "tail two"])
    assert embedded.truncated_N.tolist() == [True, False, True]
    assert embedded.vectors_ND[0] @ embedded.vectors_ND[2] > 0.9999, "the hazard that is flagged"


@pytest.mark.parametrize("damage", ["cut", "flip", "shape", "length", "keys", "dimension"])
def test_a_damaged_cache_file_is_rebuilt(filled: Embedder, tmp_path: Path, damage: str) -> None:
    embedder = Embedder(filled.model, tmp_path)
    embedder.folder.mkdir()
    whole = filled.embed(TEXTS).vectors_ND
    keys = np.array([text_key(text) for text in TEXTS])
    fields = {"keys": keys, "vectors": whole, "truncated": np.zeros(4, bool)}
    if damage == "shape":
        fields["vectors"] = whole[:3]
    if damage == "length":
        fields["vectors"] = whole * 2
    if damage == "keys":
        del fields["keys"]
    path = embedder.folder / "0.npz"
    np.savez(path, **fields)  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    if damage == "dimension":
        fields["vectors"] = unit(whole[:, :7])
        np.savez(embedder.folder / "1.npz", **fields)  # type: ignore[arg-type]
    assert read_cache(embedder.folder) == {}
    assert (embedder.embed(TEXTS).vectors_ND == whole).all()
    assert set(read_cache(embedder.folder)) == set(keys)


def test_a_folder_without_a_model_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"modules\.json"):
        embedder_folder("nowhere", tmp_path)
