"""Rejection sampling, first half: K responses to each prompt from the right policy (4.2.2).

Shards are committed one by one; a killed step goes on at the next shard. While the engine generates
a shard, the one before it is verified, so that `select` finds verdicts ready. With adaptive K a
prompt gets more responses only while none of them passes the gates (and reaches the target score).

A response in which the model wrote a control token is dropped: read again, it would be a second
turn.
"""

from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.errors import PosttrainError
from posttrain.gates import stopped_at
from posttrain.generation import Engine
from posttrain.hook_rows import policy_of
from posttrain.models.chat import check_same_template, control_tokens, load_tokenizer
from posttrain.models.devices import pick_device
from posttrain.responses import (
    CONTROL_TOKEN,
    Draw,
    candidates_of,
    contains_any,
    steered_requests,
    waves,
)
from posttrain.rows import Candidate, Prompt
from posttrain.sampling.service import KeptEngine
from posttrain.sampling.shards import generate_in_shards
from posttrain.scoring import Dialog, RewardScorer
from posttrain.settings.stages import SampleStage
from posttrain.steps.manifest import WORK
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows, read_json
from posttrain.verifying import Pair, verifier_of


def run(inputs: Inputs, settings: SampleStage, out: Output) -> None:
    """Write `responses.jsonl`: one candidate a row."""
    prompts = load_rows(inputs["prompts"] / "train.jsonl", Prompt)
    sampler = _Sampler(inputs, settings, out)
    # The rows are closed first: a shard at work is waited for, and only then the engine ends.
    with closing(sampler), closing(sampler.responses(prompts)) as rows:
        out.write("responses", rows)
    kept = max(1, sampler.kept)
    out.metrics(
        tokens=sampler.tokens,
        mean_tokens=sampler.kept_tokens / kept,
        eos_share=sampler.stopped / kept,
        prompts=len(prompts),
        responses_per_prompt=sampler.asked / max(1, len(prompts)),
    )
    if settings.sampling.adaptive is not None:
        out.metrics(tokens_per_accepted=sampler.tokens / max(1, len(sampler.settled)))
    out.part("sample", sampler.asked, sampler.kept)


@dataclass
class _Sampler:
    """One engine that holds one policy after the other, and what is counted meanwhile."""

    inputs: Inputs
    settings: SampleStage
    out: Output
    asked: int = 0
    tokens: int = 0
    kept: int = 0
    kept_tokens: int = 0
    stopped: int = 0
    settled: set[str] = field(default_factory=set)
    """Prompts that need no further response."""

    def __post_init__(self) -> None:
        resources, adaptive = self.inputs.resources, self.settings.sampling.adaptive
        self._verifier = verifier_of(
            self.inputs, self.settings.verify_ahead if adaptive is None else self.settings.recipes
        )
        template = self.inputs.paths.get("template")
        self._kept = KeptEngine(self.settings.sampling.engine, template, resources.device)
        self._engine: Engine | None = None
        self._scorer: RewardScorer | None = None
        if adaptive is not None and adaptive.target is not None:
            self._scorer = RewardScorer(
                self.inputs["reward"] / "model",
                template,
                device=pick_device(resources.device),
            )

    def responses(self, prompts: Sequence[Prompt]) -> Generator[Candidate]:
        """Every response that can be read again, policy by policy and wave by wave."""
        groups: dict[str, list[Prompt]] = defaultdict(list)
        for prompt in prompts:
            groups[policy_of(self.inputs, prompt.capability)].append(prompt)
        for name, mine in groups.items():
            folder, model = self._model(name)
            if "template" not in self.inputs.paths and "policy" in self.inputs.paths:
                check_same_template(folder, self._model("policy")[0], "chat.template")
            self._engine = self._kept.holding(folder)
            forbidden = control_tokens(load_tokenizer(folder))
            yield from self._in_waves(mine, name, model, forbidden)

    def close(self) -> None:
        """Give engine and reward model back."""
        self._kept.close()
        if self._scorer is not None:
            self._scorer.close()

    def _model(self, name: str) -> tuple[Path, str]:
        """A policy's model folder, and what its responses say they come from."""
        folder = self.inputs[name]
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            return folder, name
        return folder / "model", str(read_json(manifest)["address"])

    def _readable(self, rows: Sequence[Candidate], forbidden: Sequence[str]) -> Iterator[Candidate]:
        """The rows that can be read again; all are counted."""
        for row in rows:
            self.asked += 1
            self.tokens += row.num_tokens
            if contains_any(row.response, forbidden):
                self.out.drop(row.id, CONTROL_TOKEN, text=row.response)
                continue
            self.kept += 1
            self.kept_tokens += row.num_tokens
            self.stopped += row.finish_reason == "stop"
            yield row

    def _in_waves(
        self, prompts: Sequence[Prompt], name: str, model: str, forbidden: Sequence[str]
    ) -> Iterator[Candidate]:
        """Responses of all prompts, then further ones where those were not good enough."""
        adaptive = self.settings.sampling.adaptive
        most = max(self.settings.recipes[prompt.capability].k for prompt in prompts)
        parts = [range(most)] if adaptive is None else waves(adaptive, most)
        for part in parts:
            open_prompts = [prompt for prompt in prompts if prompt.id not in self.settled]
            yield from self._wave(open_prompts, part, name, model, forbidden)

    def _wave(
        self,
        prompts: Sequence[Prompt],
        part: range,
        name: str,
        model: str,
        forbidden: Sequence[str],
    ) -> Iterator[Candidate]:
        """Some of the K responses to each prompt; a shard is looked at while the next is made."""
        sampling = self.settings.sampling
        draw = Draw(self.settings.seed, self.settings.round, sampling.top_p)
        workspace, recipes = self.inputs.workspace, self.settings.recipes
        asked = steered_requests(prompts, recipes, workspace, draw, part)
        by_request = {one.request.id: one for one in asked}
        assert self._engine is not None
        waiting: list[Pair] = []
        folder = self.out.path / WORK / "shards" / name.replace(":", "-") / f"from-{part.start}"
        requests = [one.request for one in asked]
        with closing(
            generate_in_shards(
                self._engine, requests, sampling.shard_size, folder, self.out.progress
            )
        ) as pairs:
            for place, (request, samples) in enumerate(pairs, 1):
                one = by_request[request.id]
                rows = list(self._readable(candidates_of(one, samples, model), forbidden))
                waiting += [(row, one.prompt) for row in rows]
                if place % sampling.shard_size == 0 or place == len(requests):
                    self._look(waiting)
                    waiting = []
                yield from rows

    def _look(self, pairs: Sequence[Pair]) -> None:
        """Verify responses, and settle the prompts of those that are good enough."""
        adaptive = self.settings.sampling.adaptive
        if adaptive is None:
            self._verify_ahead(pairs)
            return
        gates, recipes = self.settings.selection, self.settings.recipes
        assert gates is not None
        passing = [
            (row, prompt)
            for (row, prompt), verdict in zip(pairs, self._verifier.verify(pairs), strict=True)
            if stopped_at(row, prompt, verdict, gates, recipes[prompt.capability]) is None
        ]
        if self._scorer is not None and adaptive.target is not None:
            dialogs = [Dialog(row.messages, row.tools, row.id) for row, _ in passing]
            scores = self._scorer.score(dialogs)
            passing = [
                pair
                for pair, score in zip(passing, scores, strict=True)
                if score is not None and score >= adaptive.target
            ]
        self.settled |= {prompt.id for _, prompt in passing}

    def _verify_ahead(self, pairs: Sequence[Pair]) -> None:
        """Have verdicts ready for `select`, which tells what is wrong with a verifier."""
        ahead = self.settings.verify_ahead
        with suppress(PosttrainError):
            self._verifier.verify([pair for pair in pairs if pair[1].capability in ahead])
