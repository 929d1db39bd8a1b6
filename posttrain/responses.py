"""From prompts to requests, and from samples to candidates; seeds come from ids alone.

Knows steering system prompts and the ids of responses. Knows no engine.

    requests = steered_requests(prompts, recipes, workspace, Draw(seed=0, round=2))
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from posttrain.errors import BadInput
from posttrain.generation import Request, Sample
from posttrain.rows import Candidate, Message, Prompt, stable_seed
from posttrain.settings.plan import Adaptive
from posttrain.settings.recipe import RecipeSettings, Temperature, TemperatureRange
from posttrain.workspace import Workspace, find_recipe


@dataclass(frozen=True)
class Asked:
    """A request with the prompt and the steering it was made from."""

    request: Request
    prompt: Prompt
    system_id: str | None
    first_index: int
    """Index of its first sample among the prompt's K."""


@dataclass(frozen=True)
class Draw:
    """How responses are drawn: what does not depend on the capability."""

    seed: int
    round: int
    top_p: float = 1.0
    logprobs: bool = False
    """Whether to keep the log-probability of each sampled token."""


def steered_requests(
    prompts: Iterable[Prompt],
    recipes: Mapping[str, RecipeSettings],
    workspace: Workspace,
    draw: Draw,
    part: range | None = None,
) -> list[Asked]:
    """K samples for each prompt, shared out over the recipe's steering prompts.

    A recipe with K = 0 takes no part in rejection sampling (section 4.3.5). `part` asks for some
    of the K alone, as `shared_out` says.

    Raises:
        BadInput: a steering template is missing or does not render.
    """
    systems = {name: steering_prompts(workspace, one) for name, one in recipes.items()}
    asked: list[Asked] = []
    for prompt in prompts:
        recipe = recipes[prompt.capability]
        steering = systems[prompt.capability]
        temperature = temperature_of(prompt, recipe.temperature, draw)
        asked += shared_out(prompt, recipe.k, steering, draw, temperature, recipe.max_tokens, part)
    return asked


def temperature_of(prompt: Prompt, temperature: Temperature, draw: Draw) -> float:
    """The temperature of a prompt's responses; one of a range is drawn from the prompt's id."""
    if not isinstance(temperature, TemperatureRange):
        return temperature
    generator = random.Random(stable_seed(draw.seed, draw.round, prompt.id, "temperature"))
    return generator.uniform(temperature.low, temperature.high)


def shared_out(
    prompt: Prompt,
    k: int,
    systems: Sequence[tuple[str, str]],
    draw: Draw,
    temperature: float,
    max_tokens: int,
    part: range | None = None,
) -> Iterator[Asked]:
    """The requests for K samples of one prompt, shared out evenly over steering prompts.

    Ids and seeds of samples do not depend on the parts in which they are asked for.

    Args:
        prompt: what is asked.
        k: samples of the prompt in all.
        systems: name and text of each steering prompt; none asks the prompt as it is.
        draw: how responses are drawn.
        temperature: 0 is greedy decoding.
        max_tokens: the longest response.
        part: which of the K to ask for, counted in the order in which steering prompts take turns;
            None asks for all.
    """
    steering: Sequence[tuple[str | None, str | None]] = systems or [(None, None)]
    wanted = range(k) if part is None else range(part.start, min(part.stop, k))
    index = 0
    for place, (system_id, text) in enumerate(steering):
        # This steering prompt's turns are place, place + len(steering) …
        before, upto, every = (
            len(range(place, end, len(steering))) for end in (wanted.start, wanted.stop, k)
        )
        first, n = index + before, upto - before
        index += every
        if n <= 0:
            continue
        request = Request(
            id=f"{prompt.id}/{system_id}" if system_id else prompt.id,
            messages=prompt.prompt if text is None else steered(prompt.prompt, text),
            n=n,
            seed=stable_seed(draw.seed, draw.round, prompt.id, system_id) + before,
            temperature=temperature,
            top_p=draw.top_p,
            max_tokens=max_tokens,
            logprobs=draw.logprobs,
            tools=prompt.tools or (),
        )
        yield Asked(request, prompt, system_id, first)


def waves(adaptive: Adaptive, k: int) -> Iterator[range]:
    """Which of K samples are asked for together: the first few, then the rest in growing steps."""
    done = 0
    while done < k:
        upto = adaptive.first if not done else math.ceil(done * adaptive.growth)
        yield range(done, min(upto, k))
        done = upto


def plain_requests(
    prompts: Iterable[Prompt],
    recipes: Mapping[str, RecipeSettings],
    draw: Draw,
    *,
    n: int,
    temperature: float,
) -> list[Asked]:
    """N unsteered samples for each prompt."""
    return [
        Asked(
            Request(
                id=prompt.id,
                messages=prompt.prompt,
                n=n,
                seed=stable_seed(draw.seed, draw.round, prompt.id, temperature),
                temperature=temperature,
                top_p=draw.top_p,
                max_tokens=recipes[prompt.capability].max_tokens,
                logprobs=draw.logprobs,
                tools=prompt.tools or (),
            ),
            prompt,
            None,
            0,
        )
        for prompt in prompts
    ]


def candidates_of(asked: Asked, samples: Sequence[Sample], model: str) -> list[Candidate]:
    """The rows of one request's samples; sample i was drawn with seed + i.

    Where log-probabilities were asked for, a row has them as the column `logprobs`.
    """
    return [
        Candidate(
            id=f"{asked.prompt.id}/{asked.first_index + i}",
            parents=(asked.prompt.id,),
            prompt_id=asked.prompt.id,
            messages=(
                *asked.request.messages,
                Message(role="assistant", content=sample.text),
            ),
            tools=asked.request.tools or None,
            seed=asked.request.seed + i,
            finish_reason=sample.finish_reason,
            num_tokens=len(sample.token_ids),
            system_id=asked.system_id,
            model=model,
            capability=asked.prompt.capability,
            **({} if sample.logprobs is None else {"logprobs": sample.logprobs}),
        )
        for i, sample in enumerate(samples)
    ]


CONTROL_TOKEN = "control token in the response"


def contains_any(text: str, parts: Iterable[str]) -> bool:
    """Whether a text holds one of the parts."""
    return any(part in text for part in parts)


def repetition(text: str, size: int = 4) -> float:
    """Share of a text's word n-grams that occurred before in it; 0 for short texts."""
    words = text.split()
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def steered(prompt: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The prompt with a steering text in front of its own system prompt, if it has one."""
    turns = list(prompt)
    if turns[0].role == "system":
        text = f"{text}\n\n{turns.pop(0).content}"
    return (Message(role="system", content=text), *turns)


def steering_prompts(workspace: Workspace, recipe: RecipeSettings) -> Sequence[tuple[str, str]]:
    """Name and text of a recipe's steering system prompts.

    Raises:
        BadInput: a template is missing or does not render.
    """
    if not recipe.system_prompts:
        return ()
    folder = find_recipe(workspace, recipe.name).folder / "prompts"
    return [(name, render_template(folder / f"{name}.jinja")) for name in recipe.system_prompts]


def render_template(path: Path, **values: object) -> str:
    """Render a Jinja template of the workspace; every variable must be given.

    Raises:
        BadInput: missing file, wrong syntax, or a variable without a value.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)
    try:
        return environment.from_string(path.read_text()).render(**values).strip()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except jinja2.TemplateError as error:
        raise BadInput(f"{path}: {type(error).__name__}: {error}") from error
