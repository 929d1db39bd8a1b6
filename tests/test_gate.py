"""The gate: promotes on dev, falls back to the best policy, and stops at models that went wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import GuardFailed
from posttrain.settings.plan import Gate
from posttrain.settings.resources import Resources
from posttrain.settings.stages import GateStage
from posttrain.stages.gate import run
from posttrain.steps.output import Inputs, Output
from posttrain.tables import read_json, write_json
from posttrain.workspace import Workspace


def decide(
    root: Path,
    number: int,
    dev: float,
    tokens: float = 20.0,
    eos: float = 1.0,
    of: Mapping[str, float] | None = None,
) -> Any:
    """Run the gate of one round; round 0 has none before it. `of`: rates of capabilities."""
    at = root / f"round-{number}"
    sampled: dict[str, Any] = {"lengths": {"mean_tokens": tokens, "eos_share": eos}}
    sampled |= {name: {"value": value} for name, value in (of or {}).items()}
    if dev >= 0:
        sampled["all"] = {"value": dev}
    write_json(at / "measure" / "rates.json", {"dev": {"sampled": sampled}})
    write_json(at / "dpo" / "manifest.json", {"fingerprint": f"print-{number}"})
    paths = {"measure": at / "measure", "candidate": at / "dpo"}
    if number:
        paths["before"] = root / f"round-{number - 1}" / "gate"
    inputs = Inputs(paths, Workspace(root), Resources(), root / "machine.json")
    settings = GateStage(
        round=number,
        gate=Gate(tolerance=0.05),
        candidate=f"round-{number}/dpo",
        capabilities=("math", "chat") if of is not None else (),
    )
    (at / "gate").mkdir(parents=True)
    run(inputs, settings, Output(at / "gate", lambda done, total: None))
    return read_json(at / "gate" / "policy.json")


def test_a_regressing_round_hands_on_the_best_policy_not_the_last(tmp_path: Path) -> None:
    chosen = [decide(tmp_path, n, dev) for n, dev in enumerate((0.30, 0.60, 0.57, 0.50, 0.58))]
    assert [one["promoted"] for one in chosen] == [True, True, True, False, True]
    assert [one["step"] for one in chosen] == [
        "round-0/dpo",
        "round-1/dpo",
        "round-2/dpo",
        "round-1/dpo",
        "round-4/dpo",
    ]
    assert chosen[3]["dev"] == 0.60
    assert chosen[3]["fingerprint"] == "print-1"
    assert {one["best"]["step"] for one in chosen[1:]} == {"round-1/dpo"}


def test_the_best_model_of_each_capability_is_named(tmp_path: Path) -> None:
    rates = ({"math": 0.2}, {"math": 0.7}, {"math": 0.6}, {"math": 0.7})
    found = []
    for number, of in enumerate(rates):
        decide(tmp_path, number, (0.3, 0.6, 0.7, 0.1)[number], of=of)
        gate = tmp_path / f"round-{number}" / "gate"
        found.append(read_json(gate / "best-math.json"))
        # Nothing verifies it: the policy that goes on.
        chat = read_json(gate / "best-chat.json")
        assert chat["step"] == read_json(gate / "policy.json")["step"]
    assert [one["step"] for one in found] == [f"round-{n}/dpo" for n in (0, 1, 1, 3)]
    assert [one["dev"] for one in found] == [0.2, 0.7, 0.7, 0.7]
    assert found[2]["fingerprint"] == "print-1"


def test_a_model_that_does_not_end_by_itself_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(GuardFailed, match="40% of the sampled dev responses end by themselves"):
        decide(tmp_path, 0, 0.5, eos=0.4)


def test_responses_that_grow_out_of_hand_stop_the_run(tmp_path: Path) -> None:
    decide(tmp_path, 0, 0.5, tokens=20)
    decide(tmp_path, 1, 0.5, tokens=50)
    with pytest.raises(GuardFailed, match="max_length_growth"):
        decide(tmp_path, 2, 0.5, tokens=151)


def test_nothing_verified_is_no_perfect_score(tmp_path: Path) -> None:
    with pytest.raises(GuardFailed, match="no recipe of the mix verifies"):
        decide(tmp_path, 0, -1)
