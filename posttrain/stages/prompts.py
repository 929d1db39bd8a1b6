"""Collects a round's prompts, and in round 0 the held-out prompts of dev and test.

Rows whose hash belongs to dev or test never reach a round's prompts, whatever file they stand in.
"""

from posttrain.errors import BadInput
from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.recipes import StepHandle, collect_prompts, open_recipes
from posttrain.rows import Prompt, Split
from posttrain.sandbox import Sandbox
from posttrain.settings.engines import SandboxLimits
from posttrain.settings.stages import PromptsStage
from posttrain.steps.output import Inputs, Output


def run(inputs: Inputs, settings: PromptsStage, out: Output) -> None:
    """Write `train.jsonl`, or `dev.jsonl` and `test.jsonl` where prompts are held out."""
    tokenizer = load_tokenizer(inputs["base"])
    collected = collect_prompts(
        settings.sources,
        open_recipes(inputs.workspace, settings.recipes),
        inputs.workspace,
        StepHandle(Sandbox(SandboxLimits()), settings.seed),
        round_number=settings.round,
        splits=settings.splits,
        forbidden=control_tokens(tokenizer),
    )
    if settings.held_out and not collected.by_split["dev"]:
        raise BadInput(
            "evaluation.sources: no prompt of them belongs to dev, so no gate could decide; name "
            f"more prompts or raise splits.dev ({settings.splits.dev})"
        )
    wanted: tuple[Split, ...] = ("dev", "test") if settings.held_out else ("train",)
    out.reject(collected.rejects)
    for prompt in collected.duplicates:
        out.drop(prompt.id, "equal prompt")
    kept = 0
    for split, prompts in collected.by_split.items():
        if split in wanted:
            out.write(split, [_in_round(p, settings.round) for p in prompts])
            kept += len(prompts)
            continue
        for prompt in prompts:
            out.drop(prompt.id, f"belongs to {split}")
    total = sum(map(len, collected.by_split.values()))
    out.part("prompts", total + len(collected.duplicates) + len(collected.rejects), kept)


def _in_round(prompt: Prompt, number: int) -> Prompt:
    return prompt.model_copy(update={"round": number})
