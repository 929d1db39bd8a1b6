"""Collects a round's prompts, and in round 0 the held-out prompts of dev and test.

Rows whose hash belongs to dev or test never reach a round's prompts, whatever file they stand in.
"""

from posttrain.errors import BadInput
from posttrain.prompt_sources import gather_prompts
from posttrain.rows import Split
from posttrain.settings.stages import PromptsStage
from posttrain.steps.output import Inputs, Output


def run(inputs: Inputs, settings: PromptsStage, out: Output) -> None:
    """Write `train.jsonl`, or `dev.jsonl` and `test.jsonl` where prompts are held out.

    Where recipes make examples of something else than prompts, also `seeds.jsonl`.

    Raises:
        BadInput: no prompt is left to train on, or none to decide with.
    """
    gathered = gather_prompts(inputs, settings, settings.round, out)
    needed: Split = "dev" if settings.held_out else "train"
    if not gathered.by_split[needed]:
        raise BadInput(
            f"of {gathered.rows_in} prompts none is left for {needed}; name more prompts, or "
            f"change splits (dev {settings.splits.dev}, test {settings.splits.test})"
        )
    wanted: tuple[Split, ...] = ("dev", "test") if settings.held_out else ("train",)
    for split, prompts in gathered.by_split.items():
        if split in wanted:
            out.write(split, prompts)
            continue
        for prompt in prompts:
            out.drop(prompt.id, f"belongs to {split}")
    if settings.seeds:
        out.write("seeds", gathered.seeds)
    kept = sum(len(gathered.by_split[split]) for split in wanted) + len(gathered.seeds)
    out.part("prompts", gathered.rows_in, kept)
