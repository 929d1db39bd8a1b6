"""The report of a made-up run: steps are published for real, their numbers are invented."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from posttrain.controller import Run
from posttrain.report.page import write_report
from posttrain.reward_measures import LENGTH_DIFFERENCES
from posttrain.steps.manifest import Manifest, list_files, publish
from posttrain.steps.run_folder import Identity
from posttrain.steps.step import Step
from posttrain.tables import read_json, write_json, write_rows
from posttrain.workspace import Workspace

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'
PLAN = """
title: Made up & small
simulated: every number is invented <b>for a test</b>
base: base
mix: {math: 0.75, code: 0.25}
bootstrap: {human: [rows.jsonl]}
rounds:
  - {prompts: [{path: rows.jsonl}], preferences: [rows.jsonl]}
  - {prompts: [{path: rows.jsonl}], preferences: [rows.jsonl]}
evaluation: {sources: [{path: rows.jsonl}], members: true}
tasks: {models: [previous]}
"""
VOID = {"meta", "br", "img", "link", "input", "hr"}


def _rate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.04, "num": 40}


def _number(step: Step) -> int:
    """0 for the base, 1 for the bootstrap, 2 for round 1, ..."""
    return 0 if step.name == "measure-base" else step.round + 1


def _value(number: int, split: str, mode: str, capability: str) -> float:
    """A rate that no other place of the page shows."""
    place = ["all", "math", "code"].index(capability) + 3 * (mode == "greedy")
    return 0.2 + 0.1 * number + 0.01 * place + (0.005 if split == "test" else 0.0)


def _measure(step: Step, folder: Path) -> dict[str, Any]:
    number = _number(step)
    rates: dict[str, Any] = {}
    rows = []
    for split in ("dev", "test"):
        for mode in ("sampled", "greedy"):
            rates.setdefault(split, {})[mode] = {
                **{c: _rate(_value(number, split, mode, c)) for c in ("all", "math", "code")},
                "measures": {"math": {f"$x_1$ {HOSTILE}": 3.25 + number, "odd": float("nan")}},
                "lengths": {"mean_tokens": 20.5 + number, "eos_share": 0.9},
            }
            for i in range(3):
                dialog = [
                    {"role": "user", "content": f"prompt {split} {i}"},
                    {"role": "assistant", "content": f"answer {number} {mode} {HOSTILE}"},
                ]
                rows.append(
                    {
                        "id": f"{mode}/{split}{i}/0",
                        "prompt_id": f"{split}{i}",
                        "messages": dialog,
                        "finish_reason": "stop" if i else "length",
                        "capability": "math",
                        "passed": bool(number > 1),
                        "split": split,
                        "mode": mode,
                    }
                )
    write_json(folder / "rates.json", rates)
    write_rows(folder / "responses.jsonl", rows)
    return {"metrics": {"rates": rates}}


def _measure_reward(step: Step, folder: Path) -> dict[str, Any]:
    one = {
        "all": _rate(0.7),
        "better": _rate(0.8 + step.round / 1000),
        "trained": _rate(0.61),
        "longer wins": _rate(0.44),
    }
    accuracy = {"dev": one, "test": one}
    members = {f"rm-{name}": {"trained": _rate(0.6 + i / 100)} for i, name in enumerate("ab", 3)}
    write_json(folder / "accuracy.json", accuracy)

    def pair(value: float) -> dict[str, Any]:
        return {"accuracy": _rate(value), "longer_wins": _rate(value - 0.3)}

    measured = {
        "all": pair(0.7),
        "strength": {"better": pair(0.8)},
        "capability": {"math": pair(0.522 + step.round / 1000), f"code {HOSTILE}": pair(0.6)},
        "source": {"round-1": pair(0.533)},
        "length_difference": {LENGTH_DIFFERENCES[4]: pair(0.9), LENGTH_DIFFERENCES[0]: pair(0.355)},
        "calibration": {"ece": 0.1234 if step.round == 1 else None, "num": 40, "bins": []},
        "length_correlation": {"responses": 0.25, "pairs": -0.4321},
    }
    measures = {"dev": measured, "test": measured}
    return {"metrics": {"accuracy": accuracy, "members": members, "measures": measures}}


def _measure_members(step: Step, folder: Path) -> dict[str, Any]:
    """In round 1 each average is its best variant's equal, in round 2 that of DPO lies below."""
    rates = {"sft-a": 0.507, "sft-b": 0.407, "sft": 0.507, "dpo-a": 0.707, "dpo-b": 0.617}
    rates["dpo"] = 0.707
    if step.round == 2:
        rates |= {"sft": 0.527, "dpo": 0.687}
    return {"metrics": {"members": {name: {"all": _rate(one)} for name, one in rates.items()}}}


def _gate(step: Step, folder: Path) -> dict[str, Any]:
    candidate = step.inputs["candidate"].address
    manifest = read_json(folder.parent.parent / candidate / "manifest.json")
    policy = {
        "step": candidate,
        "fingerprint": manifest["fingerprint"],
        "round": step.round,
        "promoted": step.round != 2,
        "dev": 0.5,
        "best_dev": 0.5,
    }
    write_json(folder / "policy.json", policy)
    return {"metrics": {"promoted": step.round != 2}}


def _train(step: Step, folder: Path) -> dict[str, Any]:
    columns = {"logps/chosen": -5.0, "rewards/margins": 0.1} if "dpo" in step.name else {}
    write_rows(
        folder / "metrics.jsonl", [{"step": i, "loss": 1 / i, **columns} for i in range(1, 150)]
    )
    return {}


def _curate(step: Step, folder: Path) -> dict[str, Any]:
    share = {"wanted": 0.75, "achieved": 0.613, "rows": 31, "examples": 62}
    part = {
        "name": "clean",
        "rows_in": 1234,
        "rows_out": 1200,
        "dropped": {f"bad {HOSTILE}": 34},
        "changed": {"strip_emoji": 17, "idle_rule": 0},
    }
    counts = {"reward": 111, "judge": 222, "both": 77, "union": 256, "human": 33}
    quality = {"math": {**counts, "without_score": 5, "without_grade": 9}}
    near = {
        "capability": {"math": {"rows": 1111, "loss": 0.0123}},
        "source": {f"forum {HOSTILE}": {"rows": 44, "loss": 0.25}},
        "truncated": {"math": 17},
    }
    notes = {"quality": quality, "semantic_dedup": near}
    return {"metrics": {"mix": {"math": share}, "notes": notes}, "funnel": [part]}


def _dials(step: Step, folder: Path) -> dict[str, Any]:
    dials = {
        "kl": {"value": 45.67, "least": None, "most": 30.0, "past": True},
        "eos_share": {"value": 0.987, "least": 0.9, "most": None, "past": False},
    }
    return {"metrics": {"dials": dials}}


def _preferences(step: Step, folder: Path) -> dict[str, Any]:
    """Two people and a judge from round 2 on; one of them judges known answers badly."""
    if step.round < 2:
        return {}
    one = {
        "judgments": 321,
        "ties": 12,
        "skips": 3,
        "edits": 45,
        "strengths": {"better": 3, "significantly better": 1},
        "gold": _rate(0.912),
        "first": _rate(0.541),
        "seconds": 75.0,
    }
    bare = {**one, "gold": _rate(0.388), "first": None, "seconds": None, "strengths": {}}
    alpha = {"value": 0.7123, "low": 0.55, "high": 0.83}
    told = {
        "annotators": {"ana": one, f"ben {HOSTILE}": bare},
        "agreement": {
            "tasks": 40,
            "same": _rate(0.866),
            "alpha": {"side": alpha, "strength": None},
        },
        "flagged": [f"ben {HOSTILE}"],
        "left_out": [f"ben {HOSTILE}"],
        "judge": {
            "name": "judge m",
            "all": _rate(0.777),
            "shared": _rate(0.766),
            "by_capability": {"math": _rate(0.755)},
            "trusted": ["math"],
            "labelled": 17,
        },
    }
    return {"metrics": {"annotation": told}}


WRITERS: Mapping[str, Callable[[Step, Path], dict[str, Any]]] = {
    "measure-base": _measure,
    "measure": _measure,
    "measure-rm": _measure_reward,
    "measure-members": _measure_members,
    "gate": _gate,
    "bootstrap": _train,
    "curate": _curate,
    "preferences": _preferences,
    "dials": _dials,
}


def _publish(run: Run, step: Step) -> None:
    identity = run.folder.identity(step)
    assert isinstance(identity, Identity)
    partial = run.folder.partial(step)
    partial.mkdir(parents=True)
    (partial / "note.txt").write_text(step.address)
    trains = re.fullmatch(r"(rm|sft|dpo)-\w+", step.name)
    writer = _train if trains else WRITERS.get(step.name)
    books = writer(step, partial) if writer else {}
    manifest = Manifest(
        address=step.address,
        fingerprint=identity.fingerprint,
        payload=identity.payload,
        inputs={name: source.address for name, source in step.inputs.items()},
        files=list_files(partial),
        rows={},
        funnel=books.get("funnel", []),
        metrics=books.get("metrics", {}),
        circumstances={},
        seconds=2.5 + step.round,
        peak_memory_mib=1500 + step.round,
        versions={"python": "3.11.9", "trl": "1.16.0"},
        git_commit="0123abcd",
        argv=["posttrain", "run", "--plan", "made"],
        host="somewhere",
        finished="2026-01-02T03:04:05+00:00",
    )
    publish(partial, run.folder.path(step), manifest)
    run.folder.forget()


def _run(root: Path, until: str | None = None) -> Run:
    """A run whose steps before `until` are published; all of them without it."""
    (root / "rounds").mkdir()
    (root / "rounds" / "made.yaml").write_text(PLAN)
    (root / "rows.jsonl").write_text("{}\n")
    (root / "base").mkdir()
    (root / "base" / "config.json").write_text("{}")
    run = Run.open(Workspace(root), "made")
    for step in run.steps.values():
        if step.address == until:
            break
        _publish(run, step)
    return run


def _page(run: Run) -> str:
    path = run.folder.root / "report.html"
    write_report(run, path)
    assert [p.name for p in path.parent.glob("report*")] == ["report.html"]
    return path.read_text(encoding="utf-8")


class _Balance(HTMLParser):
    """Fails on a closing tag that closes nothing; remembers ids and what is linked."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name.endswith(("href", "src"))]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _run(tmp_path_factory.mktemp("whole"))


def test_every_rounds_numbers_are_there(whole: Run) -> None:
    page = _page(whole)
    for number in range(4):
        for split in ("dev", "test"):
            for mode in ("sampled", "greedy"):
                value = _value(number, split, mode, "all")
                assert f"{100 * value:.1f} %" in page
                assert f"{100 * (value - 0.05):.1f}–{100 * (value + 0.04):.1f}" in page
            for capability in ("math", "code"):
                assert f"{100 * _value(number, split, 'sampled', capability):.1f} %" in page
        assert f"{3.25 + number}" in page
        assert f"{20.5 + number}" in page
    for text in ("80.1 %", "80.2 %", "44.0 %", "61.3 %", "wanted 75.0 %", "1,234", "1,502 MiB"):
        assert text in page
    for text in ("promoted", "kept back", "reported only", "strip_emoji: 17", "0123abcd", "1.16.0"):
        assert text in page
    assert "idle_rule" not in page
    assert "Missing:" not in page
    assert read_json(whole.folder.root / "round-2/gate/policy.json")["fingerprint"] in page
    assert page.count("<svg ") == 3 + 2 + 2 + 2 + 2 + 3 + 5


def test_the_reward_model_is_shown_by_group_with_what_length_alone_would_reach(whole: Run) -> None:
    page = _page(whole)
    section = page.partition('<h2 id="reward">')[2].partition("<h2 ")[0]
    for text in (
        "≤ 30",
        "45.7 !",
        "0.987",
        "1,111",
        "1.2 %",
        "25.0 %",
        "256",
        "This plan has no judge",
    ):
        assert text in page
    for text in ("52.3 %", "52.4 %", "22.3 %", "53.3 %", "35.5 %", "0.1234", "-0.4321", "0.25"):
        assert text in section
    assert f"code {HOSTILE}" not in section
    shorter, longer = (section.index(LENGTH_DIFFERENCES[place]) for place in (0, 4))
    assert shorter < longer
    assert section.index("By capability") < shorter < section.index("Calibration and length")


def test_annotators_are_shown_with_how_well_they_judge(whole: Run, tmp_path: Path) -> None:
    section = _page(whole).partition('<h2 id="annotators">')[2].partition("<h2 ")[0]
    for text in (
        "86.6 %",
        "0.71",
        "0.55–0.83",
        "91.2 %",
        "54.1 %",
        "1 min 15 s",
        "75.0 %",
        "25.0 %",
    ):
        assert text in section
    # The judge beside people, by capability, and what it labelled for them.
    for text in ("77.7 %", "76.6 %", "75.5 %", "<td>17</td>"):
        assert text in section
    assert re.search(r'<span class="bad">38\.8 % !</span>', section)
    assert "flagged" in section and "left out" in section and HOSTILE not in section
    nobody = _page(_run(tmp_path, until="round-2/preferences"))
    assert "a judgment of tasks" in nobody.partition('<h2 id="annotators">')[2].partition("<h2 ")[0]


def test_an_average_below_its_best_variant_is_named(whole: Run, tmp_path: Path) -> None:
    page = _page(whole)
    assert (
        "<strong>Average below its best variant:</strong> rm in round 1 by 3.00 points (rm-b); "
        "rm in round 2 by 3.00 points (rm-b); dpo in round 2 by 2.00 points (dpo-a)."
    ) in page
    cells = re.findall(
        r"<td><span( class=.bad.)?>([+-][0-9.]+)</span><small>(\w+-\w)</small>", page
    )
    assert [(bool(bad), gap, best) for bad, gap, best in cells] == [
        (True, "-3.00", "rm-b"),
        (True, "-3.00", "rm-b"),
        (False, "+0.00", "sft-a"),
        (False, "+2.00", "sft-a"),
        (False, "+0.00", "dpo-a"),
        (True, "-2.00", "dpo-a"),
    ]
    half = _page(_run(tmp_path, until="round-1/measure-rm"))
    assert "best variant" not in half


def test_it_opens_offline_and_is_well_formed(whole: Run) -> None:
    page = _page(whole)
    balance = _Balance()
    balance.feed(page)
    assert balance.open == []
    assert len(balance.ids) == len(set(balance.ids))
    assert {link.lstrip("#") for link in balance.links} <= set(balance.ids)
    assert "://" not in page
    assert "script" not in balance.tags


def test_text_of_models_and_plugins_is_escaped(whole: Run) -> None:
    page = _page(whole)
    assert "<script" not in page
    assert "<img" not in page
    assert "answer 3 greedy &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "bad &lt;script&gt;" in page
    assert "$x_1$ &lt;script&gt;" in page


def test_examples_show_greedy_test_responses_only(whole: Run) -> None:
    page = _page(whole)
    assert "prompt test 0" in page
    assert "prompt dev 0" not in page
    assert "answer 3 sampled" not in page
    assert page.count("✗ failed") == page.count("✓ passed") == 6
    assert page.count("cut at the length limit") == 4


def test_what_is_simulated_stands_at_the_top(whole: Run, tmp_path: Path) -> None:
    banner = "<strong>Simulated:</strong> every number is invented &lt;b&gt;for a test&lt;/b&gt;"
    assert banner in _page(whole)
    real = Run.open(whole.workspace, "made", ["simulated="])
    write_report(real, tmp_path / "real.html")
    assert "Simulated:" not in (tmp_path / "real.html").read_text()


def test_a_half_finished_run_says_what_is_missing(tmp_path: Path) -> None:
    page = _page(_run(tmp_path, until="round-2/measure"))
    assert "<strong>Missing:</strong> round 2 has no published measure" in page
    assert f"{100 * _value(2, 'dev', 'sampled', 'all'):.1f} %" in page
    assert f"{100 * _value(3, 'dev', 'sampled', 'all'):.1f} %" not in page
    assert "as of round 1" in page


def test_a_run_without_steps_has_a_page(tmp_path: Path) -> None:
    page = _page(_run(tmp_path, until="round-0/heldout"))
    assert "base, bootstrap, round 1, round 2 have no published measure" in page
    assert "<svg" not in page


def test_stale_steps_are_left_out(whole: Run, tmp_path: Path) -> None:
    changed = Run.open(whole.workspace, "made", ["dpo.beta=0.3"])
    write_report(changed, tmp_path / "changed.html")
    page = (tmp_path / "changed.html").read_text()
    assert "<strong>Stale:</strong>" in page
    assert f"{100 * _value(1, 'dev', 'sampled', 'all'):.1f} %" in page
    assert f"{100 * _value(2, 'dev', 'sampled', 'all'):.1f} %" not in page


def test_the_same_run_gives_the_same_bytes_without_torch(whole: Run, tmp_path: Path) -> None:
    page = _page(whole)
    code = """
import sys
from pathlib import Path
from posttrain.controller import Run
from posttrain.report.page import write_report
from posttrain.reward_measures import LENGTH_DIFFERENCES
from posttrain.workspace import Workspace
write_report(Run.open(Workspace(Path(sys.argv[1])), "made"), Path(sys.argv[2]))
assert "torch" not in sys.modules
"""
    again = tmp_path / "deep" / "again.html"
    subprocess.run(
        [sys.executable, "-c", code, str(whole.workspace.root), str(again)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert again.read_text(encoding="utf-8") == page
