"""Rejection sampling, second half: the gates, then the best of K by the reward model (4.2.2).

A prompt where nothing passes goes to `hard.jsonl` with its best attempt.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from posttrain.gates import stopped_at
from posttrain.hooks import Verdict
from posttrain.rows import Candidate, Preference, Prompt, content_id
from posttrain.settings.plan import SyntheticPairs
from posttrain.settings.stages import SelectStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.verifying import verifier_of

NOT_CHOSEN = {"reward": "not the best of K", "random": "another one of K was drawn"}


def run(inputs: Inputs, settings: SelectStage, out: Output) -> None:
    """Write `selected.jsonl` (with score, verdict and pass rate) and `hard.jsonl`."""
    prompts = {p.id: p for p in load_rows(inputs["prompts"] / "train.jsonl", Prompt)}
    rows = load_rows(inputs["score"] / "responses.jsonl", Candidate)
    verifier = verifier_of(inputs, settings.recipes)
    verdicts = verifier.verify([(row, prompts[row.prompt_id]) for row in rows])
    groups: dict[str, list[tuple[Candidate, Verdict | None]]] = defaultdict(list)
    for row, verdict in zip(rows, verdicts, strict=True):
        groups[row.prompt_id].append((row, verdict))
    gates = settings.selection
    best_first = partial(_best_first, penalty=gates.length_penalty)
    order = best_first if gates.by == "reward" else _any_first
    selected, hard, pairs = [], [], []
    for prompt_id, group in groups.items():
        prompt = prompts[prompt_id]
        recipe = settings.recipes[prompt.capability]
        passing = _passing(group, prompt, settings, out)
        passing.sort(key=order)
        best = passing[: gates.keep]
        for row in passing[gates.keep :]:
            out.drop(row.id, NOT_CHOSEN[gates.by], score=row.score)
        known = [verdict.passed for _, verdict in group if verdict is not None]
        rate = sum(known) / len(known) if known else None
        if not best:
            attempt = min((row for row, _ in group), key=best_first)
            hard.append(_with(attempt, passed=False, pass_rate=rate))
        for row in best:
            passed = _verdict_of(group, row)
            trained_on = row.messages[:-1] if recipe.train_on_steering else prompt.prompt
            selected.append(
                _with(
                    row,
                    passed=passed,
                    pass_rate=rate,
                    round=settings.round,
                    level=prompt.level,
                    prompt=[message.to_json() for message in trained_on],
                )
            )
        if best and gates.synthetic_pairs is not None:
            attempts = [row for row, _ in group]
            pairs += _pair(best[0], attempts, prompt, gates.synthetic_pairs, settings.round)
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
    if gates.synthetic_pairs is not None:
        out.write("pairs", pairs)
        out.metrics(synthetic_pairs=len(pairs))
    if verified:
        out.metrics(pass_rate=sum(verified) / len(verified))


def _passing(
    group: Sequence[tuple[Candidate, Verdict | None]],
    prompt: Prompt,
    settings: SelectStage,
    out: Output,
) -> list[Candidate]:
    recipe = settings.recipes[prompt.capability]
    passing = []
    for row, verdict in group:
        reason = stopped_at(row, prompt, verdict, settings.selection, recipe)
        if reason is None:
            passing.append(row)
        else:
            evidence = {} if verdict is None else {"evidence": verdict.evidence}
            out.drop(row.id, reason, **evidence)
    return passing


def _pair(
    best: Candidate,
    rows: Sequence[Candidate],
    prompt: Prompt,
    limits: SyntheticPairs,
    round_number: int,
) -> list[Preference]:
    """The chosen response over the worst one that is whole and far enough below it, if any is."""
    assert best.score is not None
    # Two prompts that steer may have led to the same text.
    whole = [
        row
        for row in rows
        if row.score is not None
        and row.finish_reason == "stop"
        and row.response.strip() not in ("", best.response.strip())
    ]
    worst = min(whole, key=lambda row: (row.score, row.id), default=best)
    if worst.score is None or best.score - worst.score < limits.min_gap:
        return []
    return [
        Preference.model_validate(
            {
                "id": f"round-{round_number}/{prompt.id}/pair",
                "parents": (best.id, worst.id),
                "prompt": prompt.prompt,
                "chosen": best.messages[-1:],
                "rejected": worst.messages[-1:],
                "tools": prompt.tools,
                "strength": "better",
                "capability": prompt.capability,
                "batch": f"round-{round_number}",
                "synthetic": True,
            }
        )
    ]


def _best_first(row: Candidate, penalty: float) -> tuple[float, str]:
    """By score less what its length costs; equal ones by hash, so that no order is favoured."""
    assert row.score is not None
    return penalty * row.num_tokens - row.score, content_id(row.id)


def _any_first(row: Candidate) -> str:
    """Whatever its score: by hash."""
    return content_id(row.id)


def _verdict_of(group: Sequence[tuple[Candidate, Verdict | None]], row: Candidate) -> bool | None:
    verdict = next(v for candidate, v in group if candidate.id == row.id)
    return None if verdict is None else verdict.passed


def _with(row: Candidate, **columns: object) -> Candidate:
    return row.model_copy(update=columns)
