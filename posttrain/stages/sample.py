"""Rejection sampling, first half: K responses to each prompt from the latest policy (4.2.2).

Shards are committed one by one; a killed step goes on at the next shard. A response in which the
model wrote a control token is dropped: read again, it would be a second turn.
"""

from collections.abc import Iterator

from posttrain.models.chat import control_tokens, load_tokenizer
from posttrain.responses import (
    CONTROL_TOKEN,
    Draw,
    candidates_of,
    contains_any,
    steered_requests,
)
from posttrain.rows import Candidate, Prompt
from posttrain.sampling.service import open_engine
from posttrain.sampling.shards import generate_in_shards
from posttrain.settings.stages import SampleStage
from posttrain.steps.manifest import WORK
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows, read_json


def run(inputs: Inputs, settings: SampleStage, out: Output) -> None:
    """Write `responses.jsonl`: one candidate a row."""
    prompts = load_rows(inputs["prompts"] / "train.jsonl", Prompt)
    draw = Draw(settings.seed, settings.round, settings.sampling.top_p)
    asked = steered_requests(prompts, settings.recipes, inputs.workspace, draw)
    model = str(read_json(inputs["policy"] / "manifest.json")["address"])
    by_request = {one.request.id: one for one in asked}
    engine = open_engine(
        settings.sampling.engine,
        inputs["policy"] / "model",
        inputs.paths.get("template"),
        inputs.resources.device,
    )
    forbidden = control_tokens(load_tokenizer(inputs["policy"] / "model"))
    tokens = stopped = total = 0

    def rows() -> Iterator[Candidate]:
        nonlocal tokens, stopped, total
        for request, samples in generate_in_shards(
            engine,
            [one.request for one in asked],
            settings.sampling.shard_size,
            out.path / WORK / "shards",
            out.progress,
        ):
            for row in candidates_of(by_request[request.id], samples, model):
                if contains_any(row.response, forbidden):
                    out.drop(row.id, CONTROL_TOKEN, text=row.response)
                    continue
                tokens += row.num_tokens
                stopped += row.finish_reason == "stop"
                total += 1
                yield row

    try:
        out.write("responses", rows())
    finally:
        engine.close()
    out.metrics(
        tokens=tokens,
        mean_tokens=tokens / max(1, total),
        eos_share=stopped / max(1, total),
        prompts=len(prompts),
    )
    out.part("sample", sum(one.request.n for one in asked), total)
