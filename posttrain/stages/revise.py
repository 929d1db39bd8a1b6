"""Gives recipes a second try at prompts of which no response passed (section 4.3.1).

A revised response is verified like any other; those that pass join the round's responses, marked.
"""

from collections import Counter, defaultdict
from contextlib import closing
from functools import partial

from posttrain.hook_rows import STOPPED, HookRows
from posttrain.hooks import Handle, Verdict
from posttrain.responses import CONTROL_TOKEN, contains_any
from posttrain.rows import Candidate, Prompt
from posttrain.settings.stages import ReviseStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.verifying import Verifier, verifier_of

HOOK = "revise"


def run(inputs: Inputs, settings: ReviseStage, out: Output) -> None:
    """Write `responses.jsonl`: the sampled ones, then the repaired ones with `revisions`."""
    prompts = {p.id: p for p in load_rows(inputs["prompts"] / "train.jsonl", Prompt)}
    rows = load_rows(inputs["sample"] / "responses.jsonl", Candidate)
    with closing(HookRows(inputs, settings, out)) as hooks:
        mine = {name for name, recipe in hooks.recipes.items() if HOOK in recipe.hooks}
        verifier = verifier_of(inputs, settings.recipes)
        failed, told = _failed(rows, prompts, mine, verifier)
        repaired: list[Candidate] = []
        for capability in sorted(mine):
            own = [pair for pair in failed if pair[0].capability == capability]
            found = _repaired(hooks, capability, own, prompts, verifier, out)
            told[f"{capability}: repaired"] = len(found)
            repaired += found
    out.write("responses", [*rows, *repaired])
    out.metrics(**dict(sorted(told.items())))
    out.part(HOOK, len(failed), len(repaired))


def _failed(
    rows: list[Candidate], prompts: dict[str, Prompt], mine: set[str], verifier: Verifier
) -> tuple[list[tuple[Candidate, Verdict]], Counter[str]]:
    """The first whole response to each prompt of which none passed, and what is counted."""
    pairs = [(row, prompts[row.prompt_id]) for row in rows]
    pairs = [pair for pair in pairs if pair[1].capability in mine]
    groups: dict[str, list[tuple[Candidate, Verdict]]] = defaultdict(list)
    for (row, prompt), verdict in zip(pairs, verifier.verify(pairs), strict=True):
        if verdict is not None and row.finish_reason == "stop":
            groups[prompt.id].append((row, verdict))
    told: Counter[str] = Counter()
    failed = []
    for prompt_id, group in groups.items():
        first_try = any(verdict.passed for _, verdict in group)
        told[f"{prompts[prompt_id].capability}: {'first try' if first_try else 'failed'}"] += 1
        if not first_try:
            failed.append(group[0])
    return failed, told


def _repaired(
    hooks: HookRows,
    capability: str,
    failed: list[tuple[Candidate, Verdict]],
    prompts: dict[str, Prompt],
    verifier: Verifier,
    out: Output,
) -> list[Candidate]:
    """Responses that pass after as many tries as the recipe allows."""
    function, found = hooks.recipes[capability].hooks[HOOK], []
    for number in range(1, hooks.recipes[capability].settings.tries + 1):
        if not failed:
            break
        tasks = [
            (f"{row.id}/{number}", partial(_revised, function, row, prompts[row.prompt_id], told))
            for row, told in failed
        ]
        revised, reached = [], 0
        for outcome, (row, _) in zip(hooks.run(capability, HOOK, tasks), failed, strict=False):
            reached += 1
            if outcome.problem:
                out.drop(row.id, f"{capability}.{HOOK}: {outcome.problem}", parents=[row.prompt_id])
            elif outcome.value is None:
                out.drop(row.id, f"{capability}.{HOOK}: gave up", parents=[row.prompt_id])
            elif contains_any(outcome.value, hooks.forbidden):
                out.drop(row.id, f"{capability}.{HOOK}: {CONTROL_TOKEN}", parents=[row.prompt_id])
            else:
                revised.append(_candidate(row, outcome.value, number))
        for row, _ in failed[reached:]:
            out.drop(row.id, f"{capability}.{HOOK}: {STOPPED}", parents=[row.prompt_id])
        pairs = [(row, prompts[row.prompt_id]) for row in revised]
        verdicts = verifier.verify(pairs)
        judged = [(r, v) for r, v in zip(revised, verdicts, strict=True) if v is not None]
        found += [row for row, verdict in judged if verdict.passed]
        failed = [(row, verdict) for row, verdict in judged if not verdict.passed]
    for row, verdict in failed:
        out.drop(row.id, f"{capability}.{HOOK}: still fails", evidence=verdict.evidence)
    return found


def _revised(
    function: object, row: Candidate, prompt: Prompt, verdict: Verdict, handle: Handle
) -> str | None:
    assert callable(function)
    found = function(row, prompt, verdict, handle)
    if found is not None and not isinstance(found, str):
        raise TypeError(f"answered {type(found).__name__}, expected a text or None")
    return found if found is None or found.strip() else None


def _candidate(row: Candidate, text: str, number: int) -> Candidate:
    """A revised response as one of the round's."""
    last = row.messages[-1].model_copy(update={"content": str(text)})
    first = row.id.partition("+")[0]
    return row.model_copy(
        update={
            "id": f"{first}+{number}",
            "parents": (row.id,),
            "messages": (*row.messages[:-1], last),
            "revisions": number,
        }
    )
