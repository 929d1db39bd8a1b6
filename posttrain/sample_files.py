"""Samples K responses to each prompt of a file, outside of any run: rejection sampling by itself.

Knows the rows that users bring, what does not fit the model, and what is left out and why. Knows no
step, no plan and no recipe; requests, seeds and rows are made as a round makes them.

    settings = SampleFileSettings(model=Path("rounds/tiny/base"), k=4, max_tokens=64)
    sample_file(settings, Path("prompts.jsonl"), Path("responses.jsonl"))["responses"]
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as Rows
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.errors import BadInput
from posttrain.generation import Engine, Generates, Request, Sample
from posttrain.models.chat import control_tokens, load_tokenizer, render_prompt
from posttrain.models.files import context_length, read_tensors
from posttrain.models.folders import check_model_folder, no_progress_bars
from posttrain.progress import Told, progress
from posttrain.responses import (
    CONTROL_TOKEN,
    Asked,
    Draw,
    candidates_of,
    contains_any,
    render_template,
    shared_out,
)
from posttrain.rows import Candidate, content_id
from posttrain.sampling.kept_shards import check_folder, kept_shards
from posttrain.sampling.service import open_engine
from posttrain.sampling.shards import generate_in_shards
from posttrain.settings.engines import TransformersEngineSettings, VllmEngineSettings
from posttrain.settings.sample_options import SampleFileSettings
from posttrain.settings.stages import CIRCUMSTANCES
from posttrain.steps.fingerprint import ContentHashes, without
from posttrain.tables import read_table, write_rows
from posttrain.user_rows import PromptRow

TOO_LONG = "too long to sample"
_VERSION = 1
"""Raised when the same settings come to give other samples."""
_DRAWN = {"k", "temperature", "top_p", "max_tokens", "seed", "logprobs", "shard_size"}
"""Settings that a shard hangs on; its size, since shards of another would be sampled again."""

Systems = Sequence[tuple[str, str]]
"""Name and text of each steering system prompt."""


@dataclass
class _LazyEngine:
    """An engine that is opened when there is something to generate, and counts what it does."""

    opened_by: Callable[[], Engine]
    responses: int = 0
    tokens: int = 0
    seconds: float = 0.0
    _engine: Engine | None = None

    def open(self) -> Engine:
        self._engine = self._engine or self.opened_by()
        return self._engine

    def generate(self, requests: list[Request]) -> list[list[Sample]]:
        engine = self.open()
        begun = time.monotonic()
        answers = engine.generate(requests)
        self.seconds += time.monotonic() - begun
        self.responses += sum(map(len, answers))
        self.tokens += sum(len(one.token_ids) for samples in answers for one in samples)
        return answers

    def restart(self) -> None:
        if self._engine is not None:
            self._engine.restart()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    @property
    def tokens_per_second(self) -> float | None:
        """None where nothing had to be generated."""
        return self.tokens / self.seconds if self.seconds else None


@dataclass
class _Books:
    """What was written and what was left out, counted while rows go by."""

    left_out: list[dict[str, Any]]
    responses: int = 0
    tokens: int = 0
    stopped: int = 0
    control: int = 0
    prompts: set[str] = field(default_factory=set)

    def kept(self, rows: Iterable[Candidate], forbidden: Sequence[str]) -> Iterator[Candidate]:
        """The rows in which the model wrote no control token: read again, it would be a turn."""
        for row in rows:
            if contains_any(row.response, forbidden):
                self.control += 1
                told = {"id": row.id, "reason": CONTROL_TOKEN, "text": row.response}
                self.left_out.append(told)
                continue
            self.responses += 1
            self.tokens += row.num_tokens
            self.stopped += row.finish_reason == "stop"
            self.prompts.add(row.prompt_id)
            yield row


def sample_file(settings: SampleFileSettings, prompts: Path, out: Path) -> dict[str, Any]:
    """Sample every prompt of a file; run again after a kill, it goes on at the next shard.

    `out` gets one Candidate a row, in the prompts' order, and is whole or absent. Prompts that are
    malformed or leave no room for `max_tokens`, and responses that hold a control token, get their
    reason in a file beside it.

    Returns:
        The `prompts` that have responses, the `responses` written, their `tokens`, the
        `stopped_share` that ended by itself, `tokens_per_second` of what was generated now (None if
        nothing was), `resumed_responses` from before, what was `left_out`, and the files.

    Raises:
        BadInput: no model, no such file, too many malformed rows, nothing to sample, or the folder
            beside `out` belongs to another command.
        Busy: another process writes the same output.
        StepFailed: the engine died.
    """
    rejects, parts = (out.with_name(f"{out.stem}.{end}") for end in ("rejects.jsonl", "parts"))
    if prompts.resolve() in (out.resolve(), rejects.resolve()):
        raise BadInput(f"--out {out}: this would overwrite the prompts; name another file")
    if out.suffix != ".jsonl" or out.is_dir():
        raise BadInput(f"--out {out}: expected the name of a .jsonl file")
    check_folder(parts)
    _check_model(settings)
    tokenizer = load_tokenizer(settings.model, settings.template)
    forbidden = control_tokens(tokenizer)
    systems = _read_systems(settings.system, forbidden)
    table = read_table(prompts, PromptRow, forbidden)
    table.check_share(settings.reject_share, "--reject-share")
    if not table.rows:
        raise BadInput(f"{prompts}: expected prompts to sample, it has none")
    asked, long = _requests(settings, systems, table.rows, tokenizer)
    if not asked:
        raise BadInput(
            f"{prompts}: none of {len(long)} prompts fits; the first, {long[0]['id']}, is "
            f"{long[0]['reason']}"
        )
    books = _Books([*map(vars, table.rejects), *long])
    engine = _LazyEngine(lambda: _opened(settings))
    with kept_shards(parts, lambda hashes: _payload(settings, systems, hashes)) as shards:
        try:
            if len(list(shards.glob("*.jsonl"))) * settings.shard_size < len(asked):
                # Here and not in a shard, which would be tried again in halves if it failed.
                engine.open()
            with (
                _progress(engine) as told,
                closing(_candidates(settings, engine, asked, shards, told)) as rows,
            ):
                write_rows(parts / "rows.jsonl", books.kept(rows, forbidden))
        finally:
            engine.close()
        rejects.unlink(missing_ok=True)
        if books.left_out:
            write_rows(rejects, books.left_out)
        (parts / "rows.jsonl").replace(out)
    return {
        "model": str(settings.model),
        "file": str(prompts),
        "out": str(out),
        "prompts": len(books.prompts),
        "responses": books.responses,
        "tokens": books.tokens,
        "tokens_per_second": engine.tokens_per_second,
        "stopped_share": books.stopped / max(1, books.responses),
        "resumed_responses": sum(one.request.n for one in asked) - engine.responses,
        "left_out": {
            "malformed_prompts": len(table.rejects),
            "long_prompts": len(long),
            "control_token_responses": books.control,
        },
        "rejects": str(rejects) if books.left_out else None,
    }


def summary_line(found: Mapping[str, Any]) -> str:
    """One line about what `sample_file` did."""
    speed, out = found["tokens_per_second"], found["left_out"]
    told = (
        f"{found['responses']} responses to {found['prompts']} prompts",
        f"{found['tokens']} tokens",
        "nothing left to generate" if speed is None else f"{speed:.0f} tokens/s",
        f"{found['stopped_share']:.1%} ended by themselves",
    )
    left = "none left out"
    if found["rejects"] is not None:
        left = (
            f"left out: {out['long_prompts']} prompts too long, {out['malformed_prompts']} "
            f"malformed, {out['control_token_responses']} responses with a control token: see "
            f"{found['rejects']}"
        )
    return f"{', '.join(told)}; {left}"


def _opened(settings: SampleFileSettings) -> Engine:
    # transformers' bar of the weights would stand among the lines of progress.
    with no_progress_bars():
        return open_engine(settings.engine, settings.model, settings.template, settings.device)


def _check_model(settings: SampleFileSettings) -> None:
    if isinstance(settings.engine, TransformersEngineSettings | VllmEngineSettings):
        check_model_folder(settings.model)
        if "score.weight" in read_tensors(settings.model):
            raise BadInput(
                f"{settings.model}: this is a reward model, which cannot answer; name a policy"
            )
    elif not settings.model.is_dir():
        # An endpoint has the weights; the tokenizer and the context are read here all the same.
        raise BadInput(f"{settings.model}: expected a model folder, there is no such folder")
    if settings.template is not None:
        _read_text(settings.template, "chat template")


def _read_systems(paths: Sequence[Path], forbidden: Sequence[str]) -> Systems:
    systems: dict[str, str] = {}
    for path in paths:
        text = _read_text(path, "system prompt").strip()
        if path.suffix == ".jinja":
            text = render_template(path)
        found = [token for token in forbidden if token in text]
        if found or not text:
            wrong = f"holds the control token {found[0]}" if found else "is empty"
            raise BadInput(f"{path}: this system prompt {wrong}")
        if path.stem in systems:
            raise BadInput(f"{path}: another --system file is called {path.stem} too; rename one")
        systems[path.stem] = text
    return list(systems.items())


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: this {what} cannot be read ({error})") from error


def _requests(
    settings: SampleFileSettings,
    systems: Systems,
    rows: Iterable[PromptRow],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[Asked], list[dict[str, Any]]]:
    """The requests of the prompts that leave room for a response; and which do not, and why."""
    context = context_length(settings.model)
    if not isinstance(settings.engine, TransformersEngineSettings):
        context = min(context, settings.engine.max_model_len or context)
    draw = Draw(settings.seed, 0, settings.top_p, settings.logprobs)
    asked: list[Asked] = []
    long = []
    for row in rows:
        requests = list(
            shared_out(row, settings.k, systems, draw, settings.temperature, settings.max_tokens)
        )
        sent = [one.request for one in requests]
        tokens = max(len(render_prompt(tokenizer, one.messages, one.tools)) for one in sent)
        if tokens + settings.max_tokens <= context:
            asked += requests
            continue
        reason = (
            f"{TOO_LONG}: {tokens} prompt tokens and --max-tokens {settings.max_tokens} exceed "
            f"the context of {context} tokens"
        )
        long.append({"id": row.id, "reason": reason})
    return asked, long


def _payload(
    settings: SampleFileSettings, systems: Systems, hashes: ContentHashes
) -> dict[str, Any]:
    """What the shards are made from, beside the requests, whose hash is in a shard's name."""
    engine = {"sampling": {"engine": settings.engine.model_dump(mode="json")}}
    return {
        "version": _VERSION,
        "settings": settings.model_dump(mode="json", include=_DRAWN),
        "engine": without(engine, CIRCUMSTANCES)["sampling"]["engine"],
        "system": {name: content_id(text) for name, text in systems},
        "model": hashes.of(settings.model),
        "template": None if settings.template is None else hashes.of(settings.template),
    }


def _candidates(
    settings: SampleFileSettings,
    engine: Generates,
    asked: Sequence[Asked],
    shards: Path,
    told: Told,
) -> Rows[Candidate, None, None]:
    requests = [one.request for one in asked]
    answers = generate_in_shards(engine, requests, settings.shard_size, shards, told)
    for one, (_, samples) in zip(asked, answers, strict=True):
        yield from candidates_of(one, samples, str(settings.model))


def _progress(engine: _LazyEngine) -> AbstractContextManager[Told]:
    def speed() -> str:
        rate = engine.tokens_per_second
        return "" if rate is None else f"{rate:.0f} tokens/s"

    return progress("sampling", "requests", speed)
