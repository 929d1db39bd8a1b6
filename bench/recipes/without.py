"""What each recipe is worth in the tiny world: its capability with and without it, same seed.

Without a recipe means: it has no share in the mix, and no response is sampled, repaired or made for
its capability; people's judgments of it stay. With `--groups 2` half of the recipes are off in one
run and the others in another; without, there is a run for each. Runs that are in the workspace are
gone on from.

    python -m bench.recipes.without --seed 0 --workspace /tmp/recipes
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.machine import write_result
from posttrain.comparison import answers, difference
from posttrain.controller import Run
from posttrain.tables import read_json
from posttrain.workspace import Workspace, load_plan

HOOKS = "[prompts, verify, evaluate]"


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--groups", type=int, help="Runs; else one for each recipe.")
    parser.add_argument("--workspace", type=Path, required=True)
    options = parser.parse_args()
    if not options.workspace.exists():
        init = [sys.executable, "-m", "posttrain", "init", str(options.workspace)]
        subprocess.run(init, check=True)
    plain = finished(options.workspace, options.seed, options.rounds, ())
    recipes = list(plain.plan.mix)
    num = options.groups or len(recipes)
    groups = [tuple(recipes[start::num]) for start in range(num)]
    rows: dict[str, Any] = {}
    for group in groups:
        without = finished(options.workspace, options.seed, options.rounds, group)
        for recipe in group:
            rows[recipe] = row(plain, without, recipe, options.rounds)
            print(recipe, rows[recipe], flush=True)
    write_result(
        Path(__file__).parent / "without.json",
        {
            "command": f"python -m bench.recipes.without --seed {options.seed} "
            f"--rounds {options.rounds} --groups {num} --workspace DIR",
            "off together": [list(group) for group in groups],
            "simulated": plain.plan.simulated,
            "rounds": options.rounds,
            "pass rate on test prompts of the capability": rows,
        },
    )


def finished(workspace: Path, seed: int, rounds: int, off: tuple[str, ...]) -> Run:
    """The run with some recipes turned off, or with all of them on, brought so far."""
    name = f"tiny-seed-{seed}" if seed else "tiny"
    own = [f"seed={seed}"]
    if off:
        name += f"-without-{'-'.join(off)}"
        mix = dict(load_plan(Workspace(workspace.resolve()), "tiny").mix)
        rest = sum(share for one, share in mix.items() if one not in off)
        shares = {one: 0.0 if one in off else share / rest for one, share in mix.items()}
        own += [f"mix={json.dumps(shares)}"]
        for recipe in off:
            own += [f"recipes.{recipe}.k=0", f"recipes.{recipe}.hooks={HOOKS}"]
    words = ["--plan", "tiny", "--run", name, *(word for one in own for word in ("--set", one))]
    for number in range(1, rounds + 1):
        command = [sys.executable, "-m", "posttrain", "round", str(number), *words]
        subprocess.run(command, cwd=workspace, check=True)
    return Run.open(Workspace(workspace.resolve()), "tiny", own, name)


def row(plain: Run, without: Run, recipe: str, last: int) -> dict[str, Any]:
    """Pass rates after the last round, and their difference paired by prompt."""
    shown: dict[str, Any] = {}
    for mode in ("sampled", "greedy"):
        with_it, without_it = (
            {
                key: one
                for key, one in answers(
                    run.folder.root / f"round-{last}/measure", "test", mode
                ).items()
                if one.capability == recipe
            }
            for run in (plain, without)
        )
        gap = difference([(without_it, with_it)], {recipe: 1.0}, 0.95)
        assert gap is not None
        shown[mode] = {key: round(value, 4) for key, value in vars(gap).items()}
        rates = [run.folder.root / f"round-{last}/measure/rates.json" for run in (plain, without)]
        shown[mode]["with"], shown[mode]["without"] = (
            round(read_json(path)["test"][mode][recipe]["value"], 4) for path in rates
        )
    return shown


if __name__ == "__main__":
    main()
