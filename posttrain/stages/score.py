"""Scores every response with this round's reward model, and earlier rounds' choices again.

Scores of two reward models cannot be compared, so earlier rounds' rows are scored anew. A row that
does not fit the reward model's context is dropped and counted.
"""

from posttrain.models.devices import pick_device
from posttrain.rows import Candidate
from posttrain.scoring import TOO_LONG, Dialog, RewardScorer, score_in_chunks
from posttrain.settings.stages import ScoreStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows


def run(inputs: Inputs, settings: ScoreStage, out: Output) -> None:
    """Write `responses.jsonl` (this round's) and `earlier.jsonl`, each row with its score.

    Raises:
        GuardFailed: a score is no finite number, or depends on the rows it shares a batch with.
    """
    responses = load_rows(inputs["sample"] / "responses.jsonl", Candidate)
    rows = [*responses, *_earlier_choices(inputs)]
    scorer = RewardScorer(
        inputs["reward"] / "model",
        inputs.paths.get("template"),
        device=pick_device(inputs.resources.device),
    )
    dialogs = [Dialog(row.messages, row.tools, row.id) for row in rows]
    scores = score_in_chunks(scorer, dialogs, out.progress)
    scored = [
        row.model_copy(update={"score": score}) for row, score in zip(rows, scores, strict=True)
    ]
    for row in scored:
        if row.score is None:
            out.drop(row.id, TOO_LONG, parents=list(row.parents))
    out.write("responses", (row for row in scored[: len(responses)] if row.score is not None))
    out.write("earlier", (row for row in scored[len(responses) :] if row.score is not None))
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
        for folder in inputs.named("select:").values()
        for row in load_rows(folder / "selected.jsonl", Candidate)
    ]
