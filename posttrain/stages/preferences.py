"""Reads the answers to the last round's tasks, and the plan's own files, into checked preferences.

Ties and skips stay in `judgments.jsonl` and become no preference. A judged dialog becomes one
preference a turn (section 4.2.1). The first message of a dialog decides whether it belongs to
`train`, `dev` or `test`; responses that are nearly alike to a better one are left out, and a
preference of which nothing else is left is dropped; both are counted.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from posttrain.curation.decontaminate import held_out_in, index_heldout
from posttrain.embedding import CACHE, Embedder, embedder_folder
from posttrain.errors import BadInput, WaitingForPeople
from posttrain.judgments.heeded import answered_share, heed
from posttrain.judgments.preferences import preference_of
from posttrain.judgments.quality import CONFIDENCE
from posttrain.judgments.simulated import people_from, simulate
from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.preference_rows import JudgedRow
from posttrain.prompt_sources import held_out_prompts
from posttrain.rows import Judgment, Preference, Split, Task, content_id, split_of
from posttrain.settings.annotation import FileAnnotator, JudgeAnnotator
from posttrain.settings.stages import PreferencesStage
from posttrain.similarity import Distinct, Encode, Measure, by_cosine, by_edits, without_alike
from posttrain.steps.output import Inputs, Output
from posttrain.tables import Table, complaint, load_rows, read_table
from posttrain.verifying import verifier_of
from posttrain.workspace import load_functions


class _Stated(NamedTuple):
    """Preferences before any is dropped."""

    found: list[Preference]
    rows_in: int
    """Rows that were read for them, of any kind."""
    unchanged: int
    """Edits that change nothing."""


UNCHANGED = "edited equals chosen"
"""Why an edit is left out of its preference."""
TOO_SIMILAR = "responses too similar"
"""Why a preference is dropped of whose ranking nothing is left to compare."""
LEFT_OUT = "a response too similar to a better one left out"
"""What happened to a preference of whose ranking enough is left."""


def run(inputs: Inputs, settings: PreferencesStage, out: Output) -> None:
    """Write `train.jsonl`, `dev.jsonl`, `test.jsonl`, and `judgments.jsonl` where there are any."""
    tokenizer = load_tokenizer(inputs["base"])
    stated = [_of_files(inputs, control_tokens(tokenizer), out)]
    if "tasks" in inputs.paths:
        stated.append(_of_tasks(inputs, settings, control_tokens(tokenizer), out))
    found = [row for one in stated for row in one.found]

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    heldout = index_heldout(held_out_prompts(inputs["heldout"]), settings.decontaminate.ngram)
    by_split: dict[Split, list[Preference]] = {"train": [], "dev": [], "test": []}
    known: set[str] = set()
    changes = Counter({UNCHANGED: sum(one.unchanged for one in stated)})
    for row, distinct in zip(found, _distinct(found, inputs, settings, encode, out), strict=True):
        split = split_of(row.prompt, settings.splits.dev, settings.splits.test)
        reason, details = _reason_to_drop(row, known, settings), {}
        if not reason and distinct.row is None:
            reason, details = TOO_SIMILAR, distinct.alike[-1]._asdict()
        if not reason and split == "train":
            hit = held_out_in(row.prompt, heldout, settings.decontaminate)
            reason = f"{hit.reason}: {hit.heldout}" if hit is not None else None
        if reason:
            out.drop(row.id, reason, **details, row=row.to_json())
            continue
        known.add(row.id)
        changes[LEFT_OUT] += len(distinct.alike)
        row = distinct.row or row
        row = row if row.batch else row.model_copy(update={"batch": f"round-{settings.round}"})
        by_split[split].append(row)
    for name, rows in by_split.items():
        out.write(name, rows)
    rows_in = sum(one.rows_in for one in stated)
    out.part("preferences", rows_in, sum(map(len, by_split.values())), +changes)


def _of_files(inputs: Inputs, forbidden: Iterable[str], out: Output) -> _Stated:
    """What the plan's own files state."""
    found: list[Preference] = []
    num_rejects = unchanged = 0
    for path in inputs.named("preferences:").values():
        table = read_table(path, JudgedRow, forbidden)
        table.check_share(inputs.resources.reject_share)
        out.reject(table.rejects)
        found += [preference for row in table.rows for preference in row.preferences]
        num_rejects += len(table.rejects)
        unchanged += sum(row.unchanged_edits for row in table.rows)
    return _Stated(found, len(found) + num_rejects, unchanged)


def _of_tasks(
    inputs: Inputs, settings: PreferencesStage, forbidden: Iterable[str], out: Output
) -> _Stated:
    """What the answers to the last round's tasks state."""
    tasks = load_rows(inputs["tasks"] / "tasks.jsonl", Task)
    # The order in which people worked must not reach the training.
    tasks.sort(key=lambda task: content_id(task.parents[0] if task.parents else task.id))
    given = _answers(inputs, settings, tasks, forbidden, out)
    labels = []
    if "labels" in inputs.paths:
        labels = load_rows(inputs["labels"] / "judgments.jsonl", Judgment)
    heeded = heed(tasks, given.rows, labels, settings.annotator, CONFIDENCE)
    out.write("judgments", heeded.judgments())
    out.metrics(annotation=heeded.told)
    for row_id, reason in heeded.dropped:
        out.drop(row_id, reason)
    found: list[Preference] = []
    unchanged = 0
    for task in tasks:
        judgments = heeded.by_task[task.id]
        if not judgments:
            continue
        try:
            row = preference_of(task, judgments)
        except ValueError as error:
            row = f"no ranking: {complaint(error)}"
        if isinstance(row, str):
            for one in judgments:
                out.drop(one.id, row, parents=[task.id])
            continue
        found.append(row)
        for one in judgments:
            if one.id != row.parents[0]:
                out.drop(one.id, "joined: with another judgment of its task", parents=[task.id])
        unchanged += row.edited is None and any(o.edited and o.id in row.parents for o in judgments)
    rows_in = len(heeded.judgments()) + len(heeded.dropped) + len(given.rejects)
    return _Stated(found, rows_in, unchanged)


def _reason_to_drop(row: Preference, known: set[str], settings: PreferencesStage) -> str | None:
    if row.id in known:
        return f"duplicate id: {row.id}"
    if row.capability not in settings.recipes:
        return f"unknown capability: {row.capability}"
    return None


def _distinct(
    rows: Sequence[Preference],
    inputs: Inputs,
    settings: PreferencesStage,
    encode: Encode,
    out: Output,
) -> list[Distinct]:
    """Each row without responses that are more alike than the plan allows."""
    limits = settings.similarity
    measures: list[list[Measure]] = [[] for _ in rows]
    if limits.max_edit is not None:
        for row, own in zip(rows, measures, strict=True):
            own.append(by_edits(row, limits.max_edit, encode))
    if limits.max_cosine is not None and settings.embedder is not None:
        folder = embedder_folder(settings.embedder, inputs.workspace.root)
        embed = Embedder(folder, inputs.machine.parent / CACHE).embed
        cosines = by_cosine(rows, limits.max_cosine, embed)
        for measure, own in zip(cosines.measures, measures, strict=True):
            own += [measure] if measure is not None else []
        out.metrics(rankings_unread_by_embedder=cosines.num_unread)
    return [without_alike(row, own) for row, own in zip(rows, measures, strict=True)]


def _answers(
    inputs: Inputs,
    settings: PreferencesStage,
    tasks: Sequence[Task],
    forbidden: Iterable[str],
    out: Output,
) -> Table[Judgment]:
    """What people, or simulated ones, answered."""
    annotator = settings.annotator
    if isinstance(annotator, JudgeAnnotator):
        return Table([], [])
    if isinstance(annotator, FileAnnotator):
        return _answers_of_people(inputs, annotator, tasks, forbidden, out)
    people = people_from(load_functions(inputs["people"]), annotator)
    verify = verifier_of(inputs, settings.recipes).passed
    return Table(simulate(tasks, people, verify, settings.seed), [])


def _answers_of_people(
    inputs: Inputs,
    annotator: FileAnnotator,
    tasks: Sequence[Task],
    forbidden: Iterable[str],
    out: Output,
) -> Table[Judgment]:
    table = read_table(inputs["answers"], Judgment, forbidden)
    table.check_share(inputs.resources.reject_share)
    out.reject(table.rejects)
    known = {task.id for task in tasks}
    for row in table.rows:
        if row.task not in known:
            raise BadInput(
                f"judgment {row.id} answers task {row.task}, which this run never published; do "
                "the answers belong to another plan or round?"
            )
    share = answered_share(tasks, table.rows)
    if share < annotator.min_answered:
        answered = {row.task for row in table.rows}
        asked = [task.id for task in tasks if task.gold is None]
        missing = [task for task in asked if task not in answered]
        raise WaitingForPeople(
            f"{inputs['answers']} answers {len(asked) - len(missing)} of {len(asked)} tasks, "
            f"{share:.0%} of the judgments that are wanted, annotator.min_answered asks for "
            f"{annotator.min_answered:.0%}; the next without an answer is {(missing or ['-'])[0]}"
        )
    return table
