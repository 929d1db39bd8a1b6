"""Scores every response with this round's reward model, and earlier rounds' choices again.

Scores of two reward models cannot be compared, so earlier rounds' rows are scored anew.
"""

from posttrain.rows import Candidate
from posttrain.scoring import RewardScorer
from posttrain.settings.stages import ScoreStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows

_CHUNK = 1024


def run(inputs: Inputs, settings: ScoreStage, out: Output) -> None:
    """Write `responses.jsonl` (this round's) and `earlier.jsonl`, each row with its score."""
    tables = {"responses": load_rows(inputs["sample"] / "responses.jsonl", Candidate)}
    earlier = inputs.named("select:").values()
    tables["earlier"] = [
        _renamed(row)
        for folder in earlier
        for row in load_rows(folder / "selected.jsonl", Candidate)
    ]
    scorer = RewardScorer(inputs["reward"] / "model", inputs.paths.get("template"))
    total = sum(map(len, tables.values()))
    done = 0
    for name, rows in tables.items():
        scored = []
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            scores = scorer.score([row.messages for row in chunk])
            scored += [
                row.model_copy(update={"score": s}) for row, s in zip(chunk, scores, strict=True)
            ]
            done += len(chunk)
            out.progress(done, total)
        out.write(name, scored)
    out.part("score", total, total)


def _renamed(row: Candidate) -> Candidate:
    """A prompt may be sampled in several rounds: the round makes its responses' ids differ."""
    number = (row.model_extra or {})["round"]
    return row.model_copy(update={"id": f"round-{number}/{row.id}", "parents": (row.id,)})
