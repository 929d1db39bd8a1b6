"""Rejection sampling, second half: the gates, then the best of K by the reward model (4.2.2).

A prompt where nothing passes goes to `hard.jsonl` with its best attempt.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from posttrain.hooks import Grade, Verdict
from posttrain.judging import Judge, SimulatedJudge
from posttrain.recipes import StepHandle, open_recipes, verify_all
from posttrain.responses import repetition
from posttrain.rows import Candidate, Prompt, content_id
from posttrain.settings.plan import Selection
from posttrain.settings.stages import SelectStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.workspace import load_functions

NOT_CHOSEN = {"reward": "not the best of K", "random": "another one of K was drawn"}


def run(inputs: Inputs, settings: SelectStage, out: Output) -> None:
    """Write `selected.jsonl` (with score, verdict, grade and pass rate) and `hard.jsonl`."""
    prompts = {p.id: p for p in load_rows(inputs["prompts"] / "train.jsonl", Prompt)}
    rows = load_rows(inputs["score"] / "responses.jsonl", Candidate)
    verdicts = verify_all(
        open_recipes(inputs.workspace, settings.recipes),
        [(row, prompts[row.prompt_id]) for row in rows],
        StepHandle(inputs.resources.sandbox, 0),
        inputs.resources.sandbox_workers,
    )
    groups: dict[str, list[tuple[Candidate, Verdict | None]]] = defaultdict(list)
    for row, verdict in zip(rows, verdicts, strict=True):
        groups[row.prompt_id].append((row, verdict))
    judge = SimulatedJudge(inputs["judge"], load_functions) if "judge" in inputs.paths else None
    selected, hard = [], []
    for prompt_id, group in groups.items():
        passing = _through_gates(group, settings.selection, out)
        order = _best_first if settings.selection.by == "reward" else _any_first
        passing.sort(key=order)
        known = [verdict.passed for _, verdict in group if verdict is not None]
        rate = sum(known) / len(known) if known else None
        best = passing[: settings.selection.keep]
        for row in passing[settings.selection.keep :]:
            out.drop(row.id, NOT_CHOSEN[settings.selection.by], score=row.score)
        if not best:
            attempt = min((row for row, _ in group), key=_best_first)
            hard.append(_with(attempt, passed=False, pass_rate=rate))
        for row in best:
            passed = _verdict_of(group, row)
            selected.append(
                _with(
                    row,
                    passed=passed,
                    pass_rate=rate,
                    grade=_graded(judge, row, prompts[prompt_id], passed is not False),
                    round=settings.round,
                    level=prompts[prompt_id].level,
                    # What is trained on: the prompt without the system prompt that steered.
                    prompt=[m.to_json() for m in prompts[prompt_id].prompt],
                )
            )
    out.write("selected", selected)
    out.write("hard", hard)
    out.part("select", len(rows), len(selected))
    verified = [verdict.passed for verdict in verdicts if verdict is not None]
    out.metrics(
        prompts=len(prompts),
        hard_prompts=len(hard),
        prompts_without_response=len(prompts.keys() - groups.keys()),
        verified=len(verified),
    )
    if verified:
        out.metrics(pass_rate=sum(verified) / len(verified))


def _through_gates(
    group: Sequence[tuple[Candidate, Verdict | None]], gates: Selection, out: Output
) -> list[Candidate]:
    through = []
    for row, verdict in group:
        if gates.require_stop and row.finish_reason != "stop":
            out.drop(row.id, "cut at the length limit")
        elif not row.response.strip():
            out.drop(row.id, "empty response")
        elif repetition(row.response) > gates.max_repetition:
            out.drop(row.id, "repetitive")
        elif gates.verify and verdict is not None and not verdict.passed:
            out.drop(row.id, "verifier", evidence=verdict.evidence)
        else:
            through.append(row)
    return through


def _best_first(row: Candidate) -> tuple[float, str]:
    """By score; equal scores by hash, so that no order of sampling is favoured."""
    assert row.score is not None
    return -row.score, content_id(row.id)


def _any_first(row: Candidate) -> str:
    """Whatever its score: by hash."""
    return content_id(row.id)


def _verdict_of(group: Sequence[tuple[Candidate, Verdict | None]], row: Candidate) -> bool | None:
    verdict = next(v for candidate, v in group if candidate.id == row.id)
    return None if verdict is None else verdict.passed


def _graded(
    judge: Judge | None, row: Candidate, prompt: Prompt, passed: bool
) -> Mapping[str, object] | None:
    grade: Grade | None = judge.grade(row, prompt, passed) if judge is not None else None
    return None if grade is None else {"score": grade.score, "maximum": grade.maximum}


def _with(row: Candidate, **columns: object) -> Candidate:
    return row.model_copy(update=columns)
