"""Curates what SFT trains on: chosen responses of all rounds and human rows (4.2.3)."""

from posttrain.curation.contract import CurationTools, Scored
from posttrain.curation.curate import curate
from posttrain.embedding import CACHE, Embedder, embedder_folder
from posttrain.hooks import Grade
from posttrain.prompt_sources import held_out_prompts
from posttrain.rows import Candidate, Example, Message, Prompt
from posttrain.settings.stages import CurateStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows
from posttrain.workspace import load_functions


def run(inputs: Inputs, settings: CurateStage, out: Output) -> None:
    """Write `train.jsonl`; every row that did not get there stands in `dropped.jsonl`."""
    human = [
        row
        for folder in inputs.named("human:").values()
        for row in load_rows(folder / "train.jsonl", Example)
    ]
    chosen = [
        *load_rows(inputs["chosen"] / "selected.jsonl", Candidate),
        *load_rows(inputs["score"] / "earlier.jsonl", Candidate),
    ]
    rows = [Scored(example, human=True) for example in human]
    rows += [_scored(row, settings.round) for row in chosen]
    folder = embedder_folder(settings.pipeline.dedup.embedder, inputs.workspace.root)
    embedder = Embedder(folder, inputs.machine.parent / CACHE)
    result = curate(
        rows,
        settings.pipeline,
        CurationTools(
            rules=load_functions(inputs["rules"]),
            heldout=held_out_prompts(inputs["heldout"]),
            shares=settings.mix,
            embed=embedder.embed,
            topics=inputs.paths.get("rules:topics.yaml"),
            seed=settings.seed,
            work=out.path,
        ),
    )
    start = 0
    for count in result.counts:
        lost = count.rows_in - count.rows_out
        for row in result.dropped[start : start + lost]:
            example = row.row.example
            out.drop(
                row.id,
                row.reason,
                step=row.step,
                parents=list(example.parents),
                messages=[turn.to_json() for turn in example.messages],
                **row.extra,
            )
        start += lost
        out.part(count.step, count.rows_in, count.rows_out, count.modified)
    out.write("train", result.kept)
    out.metrics(
        rows=len(result.kept),
        examples=sum(row.repeat for row in result.kept.rows),
        mix={name: share._asdict() for name, share in result.mix.items()},
        notes={count.step: dict(count.notes) for count in result.counts if count.notes},
    )


def _scored(row: Candidate, round_number: int) -> Scored:
    """A chosen response as an example with its signals; its steering system prompt left out."""
    extra = row.model_extra or {}
    prompt = [Message.model_validate(turn) for turn in extra["prompt"]]
    example = Example.model_validate(
        {
            "id": f"example/{row.id}",
            "parents": (row.id,),
            "messages": (*prompt, row.messages[-1]),
            "tools": row.tools,
            "capability": row.capability,
            "source": f"rejection sampling, round {extra['round']}",
            "round": round_number,
            "pass_rate": extra.get("pass_rate"),
            "level": extra.get("level"),
            "tags": extra.get("tags"),
            "judged_difficulty": extra.get("difficulty"),
        }
    )
    grade = extra.get("grade")
    return Scored(
        example,
        row.score,
        Grade(grade["score"], grade["maximum"]) if grade else None,
        Prompt(
            id=row.prompt_id,
            prompt=tuple(prompt),
            tools=row.tools,
            capability=row.capability,
            level=extra.get("level"),
        ),
    )
