"""Curates what SFT trains on: chosen responses of all rounds and human rows (4.2.3)."""

from collections.abc import Iterator

from posttrain.curation.contract import CurationTools, Scored
from posttrain.curation.curate import curate
from posttrain.embedding import CACHE, Embedder, embedder_folder
from posttrain.hooks import Grade
from posttrain.prompt_sources import held_out_prompts
from posttrain.rows import Candidate, Example, MadeExample, Message, Prompt
from posttrain.settings.stages import CurateStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import stream_rows
from posttrain.workspace import load_filters, load_functions


def run(inputs: Inputs, settings: CurateStage, out: Output) -> None:
    """Write `train.jsonl`; every row that did not get there stands in `dropped.jsonl`."""
    folder = embedder_folder(settings.pipeline.dedup.embedder, inputs.workspace.root)
    embedder = Embedder(folder, inputs.machine.parent / CACHE)
    result = curate(
        _rows(inputs, settings.round),
        settings.pipeline,
        CurationTools(
            rules=load_functions(inputs["rules"]),
            filters=load_filters(
                {name.partition(":")[2]: path for name, path in inputs.named("filter:").items()}
            ),
            heldout=held_out_prompts(inputs["heldout"]),
            shares=settings.mix,
            sub_mixes=settings.sub_mixes,
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


def _rows(inputs: Inputs, round_number: int) -> Iterator[Scored]:
    """Human rows, this round's choices, what recipes have made, and choices of earlier rounds."""
    for folder in inputs.named("human:").values():
        for example in stream_rows(folder / "train.jsonl", Example):
            yield Scored(example, human=True)
    for row in stream_rows(inputs["chosen"] / "selected.jsonl", Candidate):
        yield _scored(row, round_number)
    if (inputs["score"] / "synthesized.jsonl").is_file():
        for made in stream_rows(inputs["score"] / "synthesized.jsonl", MadeExample):
            yield Scored(made, made.score)
    for row in stream_rows(inputs["score"] / "earlier.jsonl", Candidate):
        yield _scored(row, round_number)._replace(earlier=True)


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
