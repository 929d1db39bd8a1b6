"""Adaptive K beside fixed K on the same prompts: tokens spent, and what is selected.

Runs the sampling step twice on fresh prompts of the tiny plan, with the policy and the reward model
of a finished round; then gates and reward model choose as a round does.

    python -m bench.sampling.adaptive --workspace W --run tiny --round 3
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.machine import write_result
from bench.sampling.prompts import tiny_plan, tiny_prompts
from posttrain.gates import stopped_at
from posttrain.rows import Candidate, Prompt
from posttrain.scoring import Dialog, RewardScorer
from posttrain.settings.plan import Adaptive
from posttrain.settings.resources import Resources
from posttrain.settings.stages import SampleStage
from posttrain.stages import sample
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows, read_json, write_rows
from posttrain.verifying import VERDICTS, Verifier
from posttrain.workspace import Workspace

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TRIED = {
    "4, then 8, 16": Adaptive(first=4, growth=2),
    "2, then 4, 8, 16": Adaptive(first=2, growth=2),
    "1, then 2, 4, 8, 16": Adaptive(first=1, growth=2),
}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--run", default="tiny")
    parser.add_argument("--round", type=int, default=3)
    parser.add_argument("--num", type=int, default=2400)
    parser.add_argument("-k", type=int, default=16)
    options = parser.parse_args()
    run = options.workspace / "runs" / options.run
    chosen = read_json(run / f"round-{options.round}" / "gate" / "policy.json")
    prompts = tiny_prompts(options.num, seed=12345)
    paths = {"policy": run / chosen["step"]}
    reward = run / f"round-{options.round}" / "rm"
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_rows(root / "prompts" / "train.jsonl", prompts)
        paths |= {"prompts": root / "prompts"}
        fixed = sampled(root, paths, options.k, None)
        scores = scored(reward, fixed)
        passing = passing_rows(root, fixed, prompts)
        whole = outcome(fixed, passing, scores, prompts)
        tried = {}
        for name, adaptive in TRIED.items():
            rows = sampled(root, paths, options.k, adaptive)
            found = outcome(rows, passing, scores, prompts)
            worse = sum(a > b for a, b in zip(whole["passed"], found["passed"], strict=True))
            better = sum(a < b for a, b in zip(whole["passed"], found["passed"], strict=True))
            tried[name] = {
                **summary(found),
                "tokens_of_fixed": round(found["tokens"] / whole["tokens"], 4),
                "prompts_lost_and_won": [worse, better],
            }
    write_result(
        HERE / "adaptive.json",
        {
            "command": f"python -m bench.sampling.adaptive --run {options.run} "
            f"--round {options.round} --num {options.num} -k {options.k}",
            "prompts": len(prompts),
            "what": "tiny world, simulated people; the policy and reward model of one round",
            "fixed K": summary(whole),
            "adaptive K": tried,
        },
    )


def sampled(
    root: Path, paths: dict[str, Path], k: int, adaptive: Adaptive | None
) -> list[Candidate]:
    """The rows that the sampling step publishes."""
    plan, recipes = tiny_plan()
    folder = root / ("fixed" if adaptive is None else f"first-{adaptive.first}")
    folder.mkdir()
    inputs = Inputs(paths, Workspace(ROOT), Resources(device="cpu"), root / "machine.json")
    settings = SampleStage(
        round=99,
        seed=0,
        sampling=plan.sampling.model_copy(update={"adaptive": adaptive}),
        recipes={name: one.model_copy(update={"k": k}) for name, one in recipes.items()},
        selection=plan.selection,
    )
    sample.run(inputs, settings, Output(folder, lambda done, total: None))
    return load_rows(folder / "responses.jsonl", Candidate)


def scored(reward: Path, rows: Sequence[Candidate]) -> dict[str, float]:
    """Each row's score, by its id."""
    scorer = RewardScorer(reward / "model", None)
    values = scorer.score([Dialog(row.messages, row.tools, row.id) for row in rows])
    return {row.id: value for row, value in zip(rows, values, strict=True) if value is not None}


def passing_rows(
    root: Path, rows: Sequence[Candidate], prompts: Sequence[Prompt]
) -> dict[str, bool]:
    """Whether each row passes every gate, by its id."""
    plan, recipes = tiny_plan()
    verifier = Verifier(Workspace(ROOT), recipes, plan.resources.sandbox, 2, root / VERDICTS)
    by_id = {prompt.id: prompt for prompt in prompts}
    pairs = [(row, by_id[row.prompt_id]) for row in rows]
    return {
        row.id: stopped_at(row, prompt, verdict, plan.selection, recipes[prompt.capability]) is None
        for (row, prompt), verdict in zip(pairs, verifier.verify(pairs), strict=True)
    }


def outcome(
    rows: Sequence[Candidate],
    passing: dict[str, bool],
    scores: dict[str, float],
    prompts: Sequence[Prompt],
) -> dict[str, Any]:
    """What a round would select of the rows, prompt by prompt."""
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for row in rows:
        groups[row.prompt_id].append(row)
    passed, best = [], []
    for prompt in prompts:
        through = [row for row in groups[prompt.id] if passing[row.id] and row.id in scores]
        passed.append(bool(through))
        if through:
            best.append(max(scores[row.id] for row in through))
    tokens = sum(row.num_tokens for row in rows)
    return {"passed": passed, "scores": best, "tokens": tokens, "rows": len(rows)}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """An outcome in a few numbers."""
    accepted = sum(found["passed"])
    return {
        "responses": found["rows"],
        "tokens": found["tokens"],
        "pass_rate_of_selected": round(accepted / len(found["passed"]), 4),
        "tokens_per_accepted": round(found["tokens"] / max(1, accepted), 1),
        "mean_score_of_selected": round(fmean(found["scores"]), 3),
    }


if __name__ == "__main__":
    main()
