"""The prompts of a round: from files and hooks, split by hash, unusable ones in the books.

Knows sources, splits and what makes a prompt unusable. Where the prompts go is a stage's affair.

    gathered = gather_prompts(inputs, settings, settings.round, out)
    gathered.by_split["train"]
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from posttrain.errors import BadInput, StepFailed
from posttrain.hooks import PromptRequest
from posttrain.models.chat import control_tokens, load_tokenizer, render_prompt
from posttrain.models.files import context_length
from posttrain.recipes import Recipe, StepHandle, open_recipes
from posttrain.recipes.texts import drawn, standard_library
from posttrain.responses import contains_any, steered, steering_prompts
from posttrain.rows import Prompt, Split, prompt_hash, split_of, stable_seed
from posttrain.settings.sources import STDLIB, FileSource, Source, TextSource
from posttrain.settings.stages import PromptsStage, TasksStage
from posttrain.steps.output import Inputs, Output
from posttrain.tables import load_rows, read_table
from posttrain.workspace import blamed


@dataclass(frozen=True)
class Gathered:
    """Usable prompts by split, and how many rows came in."""

    by_split: dict[Split, list[Prompt]]
    rows_in: int
    prompts: list[Prompt]
    """The same as their sources give them."""
    seeds: list[Prompt]
    """What recipes make examples of, of the train split alone."""


def gather_prompts(
    inputs: Inputs, settings: PromptsStage | TasksStage, round_number: int, out: Output
) -> Gathered:
    """Every usable prompt of the sources; the first of equal prompts stays.

    Raises:
        BadInput: an unknown capability, or a file of which too large a share is malformed.
        StepFailed: a `prompts` hook yielded something else.
    """
    tokenizer = load_tokenizer(inputs["base"], inputs.paths.get("template"))
    recipes = open_recipes(inputs.workspace, settings.recipes)
    forbidden = control_tokens(tokenizer)
    reader = _Reader(inputs, settings, round_number, recipes, forbidden, out)
    found = reader.read(settings.sources, "data")
    seeds = reader.read(settings.seeds, "seeds") if isinstance(settings, PromptsStage) else []
    room = _Room(
        tokenizer,
        min(context_length(inputs["base"]), settings.max_context or sys.maxsize),
        {
            name: [text for _, text in steering_prompts(inputs.workspace, one)]
            for name, one in settings.recipes.items()
        },
        forbidden,
    )
    splits = settings.splits
    by_split: dict[Split, list[Prompt]] = {"train": [], "dev": [], "test": []}
    ordered: list[Prompt] = []
    for prompt in _different(found, lambda one: _unusable(one, recipes, room), out):
        split = split_of(prompt.prompt, splits.dev, splits.test)
        by_split[split].append(prompt.model_copy(update={"round": round_number}))
        ordered.append(by_split[split][-1])
    kept = []
    for prompt in _different(seeds, lambda one: _stranger(one, recipes, forbidden), out):
        if split_of(prompt.prompt, splits.dev, splits.test) == "train":
            kept.append(prompt.model_copy(update={"round": round_number}))
        else:
            out.drop(prompt.id, "a seed held out")
    return Gathered(by_split, len(found) + len(seeds) + reader.rejected, ordered, kept)


def _different(
    prompts: Sequence[Prompt], unusable: Callable[[Prompt], str | None], out: Output
) -> Iterator[Prompt]:
    """Those that can be used; the first of equal ones."""
    hashes: set[str] = set()
    ids: set[str] = set()
    for prompt in prompts:
        reason = unusable(prompt)
        key = prompt_hash(prompt.prompt)
        if key in hashes:
            reason = "equal prompt"
        elif prompt.id in ids:
            reason = "duplicate id: another prompt has it"
        if reason:
            out.drop(prompt.id, reason, prompt=[m.to_json() for m in prompt.prompt])
            continue
        hashes.add(key)
        ids.add(prompt.id)
        yield prompt


@dataclass
class _Reader:
    """Reads sources of every type."""

    inputs: Inputs
    settings: PromptsStage | TasksStage
    round_number: int
    recipes: Mapping[str, Recipe]
    forbidden: Sequence[str]
    out: Output
    rejected: int = 0

    def read(self, sources: Sequence[Source], kind: str) -> list[Prompt]:
        """Every row; files are inputs called after the kind and their place in the list."""
        found: list[Prompt] = []
        for index, source in enumerate(sources):
            if isinstance(source, FileSource):
                table = read_table(self.inputs[f"{kind}:{index}"], Prompt, self.forbidden)
                table.check_share(self.inputs.resources.reject_share)
                self.out.reject(table.rejects)
                self.rejected += len(table.rejects)
                found += table.rows
                continue
            place: tuple[object, ...] = (index,) if kind == "data" else (kind, index)
            seed = stable_seed(self.settings.seed, self.round_number, *place, source.recipe)
            if isinstance(source, TextSource):
                library = source.path == STDLIB
                path = standard_library() if library else self.inputs[f"{kind}:{index}"]
                found += drawn(source, path, seed)
            else:
                request = PromptRequest(source.num, seed, self.round_number, source.options)
                handle = StepHandle(self.inputs.resources.sandbox, self.settings.seed)
                found += _from_hook(self.recipes, source.recipe, request, handle)
        return found


def _from_hook(
    recipes: Mapping[str, Recipe], name: str, request: PromptRequest, handle: StepHandle
) -> Sequence[Prompt]:
    if name not in recipes or "prompts" not in recipes[name].hooks:
        raise BadInput(f"recipe {name}: its prompts hook is needed, but recipe.yaml names none")
    with blamed(f"recipe {name}: prompts()"):
        values = list(recipes[name].hooks["prompts"](request, handle.of(recipes[name])))
    prompts = []
    for value in values:
        try:
            prompts.append(Prompt.model_validate(value))
        except ValidationError as error:
            raise StepFailed(
                f"recipe {name}: prompts() yielded {type(value).__name__}, expected a Prompt "
                f"({error.errors()[0]['msg']})"
            ) from error
    return prompts


def held_out_prompts(folder: Path) -> list[Prompt]:
    """Every dev and test prompt that round 0 published."""
    return [
        prompt
        for split in ("dev", "test")
        for prompt in load_rows(folder / f"{split}.jsonl", Prompt)
    ]


@dataclass(frozen=True)
class _Room:
    """What decides whether a prompt and its response fit."""

    tokenizer: PreTrainedTokenizerBase
    context: int
    steering: Mapping[str, Sequence[str]]
    """Capability → its steering system prompts."""
    forbidden: Sequence[str]


def _unusable(prompt: Prompt, recipes: Mapping[str, Recipe], room: _Room) -> str | None:
    """Why a prompt cannot be used; the part before the colon is counted."""
    reason = _stranger(prompt, recipes, room.forbidden)
    if reason:
        return reason
    asked = [prompt.prompt]
    asked += [steered(prompt.prompt, text) for text in room.steering[prompt.capability]]
    length = max(len(render_prompt(room.tokenizer, one, prompt.tools or ())) for one in asked)
    longest = recipes[prompt.capability].settings.max_tokens
    if length + longest > room.context:
        return f"too long: {length} tokens, and {longest} for a response, of {room.context}"
    return None


def _stranger(
    prompt: Prompt, recipes: Mapping[str, Recipe], forbidden: Sequence[str]
) -> str | None:
    """Why a row is of no use, however long it is."""
    if prompt.capability not in recipes:
        raise BadInput(
            f"prompt {prompt.id}: capability {prompt.capability!r} is not in the plan's mix, "
            f"which has {sorted(recipes)}"
        )
    for message in prompt.prompt:
        if contains_any(message.content, forbidden):
            return "control token: inside a message"
    return None
