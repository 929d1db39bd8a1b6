"""Scores every response with this round's reward model, and earlier rounds' choices again.

With an ensemble each variant of the reward model scores, and a row's score is made of theirs.

Scores of two reward models cannot be compared, so earlier rounds' rows are scored anew. A row that
does not fit the reward model's context is dropped and counted.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing

from posttrain.ensembles import lower_bounds
from posttrain.models.devices import pick_device
from posttrain.rows import Candidate, MadeExample
from posttrain.scoring import TOO_LONG, Dialog, RewardScorer, score_in_chunks
from posttrain.settings.stages import ScoreStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows

Row = Candidate | MadeExample


def run(inputs: Inputs, settings: ScoreStage, out: Output) -> None:
    """Write `responses.jsonl` (this round's) and `earlier.jsonl`, each row with its score.

    Where recipes have made examples, also `synthesized.jsonl`.

    With an ensemble `scores` holds what each member said.

    Raises:
        GuardFailed: a score is no finite number, or depends on the rows it shares a batch with.
    """
    responses = load_rows(inputs["sample"] / "responses.jsonl", Candidate)
    earlier, made = _earlier_choices(inputs), _synthesized(inputs)
    rows: list[Row] = [*responses, *earlier, *made]
    if settings.ensemble:
        members = inputs.named("member:")
        scored = _combined(
            {
                name.partition(":")[2]: _scored_by(inputs, name, rows, settings, out)
                for name in members
            },
            settings.penalty,
        )
    else:
        scored = _scored_by(inputs, "reward", rows, settings, out)
    for row in scored:
        if row.score is None:
            out.drop(row.id, TOO_LONG, parents=list(row.parents))
    out.write("responses", (row for row in scored[: len(responses)] if row.score is not None))
    last = len(responses) + len(earlier)
    out.write("earlier", (row for row in scored[len(responses) : last] if row.score is not None))
    if "synthesize" in inputs.paths:
        out.write("synthesized", (row for row in scored[last:] if row.score is not None))
    out.part("score", len(scored), sum(row.score is not None for row in scored))


def _earlier_choices(inputs: Inputs) -> list[Candidate]:
    """What earlier rounds selected.

    A prompt may be sampled in several rounds: the round makes its responses' ids differ.
    """
    return [
        row.model_copy(
            update={
                "id": f"round-{(row.model_extra or {})['round']}/{row.id}",
                "parents": (row.id,),
            }
        )
        for folder in inputs.named("chosen:").values()
        for row in load_rows(folder / "selected.jsonl", Candidate)
    ]


def _synthesized(inputs: Inputs) -> list[MadeExample]:
    """What recipes have made."""
    if "synthesize" not in inputs.paths:
        return []
    return load_rows(inputs["synthesize"] / "examples.jsonl", MadeExample)


def _scored_by(
    inputs: Inputs, model: str, rows: Sequence[Row], settings: ScoreStage, out: Output
) -> list[Row]:
    """The rows with the scores of one model, which is let go before the next one is loaded."""
    scorer = RewardScorer(
        inputs[model] / "model",
        inputs.paths.get("template"),
        device=pick_device(inputs.resources.device),
        vllm=settings.scoring.vllm,
    )
    dialogs = [Dialog(row.messages, row.tools, row.id) for row in rows]
    with closing(scorer):
        scores = score_in_chunks(scorer, dialogs, out.progress)
    return [
        row.model_copy(update={"score": score}) for row, score in zip(rows, scores, strict=True)
    ]


def _combined(members: Mapping[str, Sequence[Row]], penalty: float) -> list[Row]:
    """The rows with the score that the members' scores make, and with theirs as `scores`."""
    found: list[dict[str, float]] = [
        {
            name: row.score
            for name, row in zip(members, several, strict=True)
            if row.score is not None
        }
        for several in zip(*members.values(), strict=True)
    ]
    whole = [place for place, scores in enumerate(found) if len(scores) == len(members)]
    by_member = {name: [found[place][name] for place in whole] for name in members}
    combined = dict(zip(whole, lower_bounds(by_member, penalty), strict=True))
    return [
        row.model_copy(update={"score": combined.get(place), "scores": found[place]})
        for place, row in enumerate(next(iter(members.values())))
    ]
