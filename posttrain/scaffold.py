"""A new recipe's folder: a small working example of every file, to edit.

Knows texts. `docs/recipes.md` explains them.

    new_recipe(Path("recipes/my_skill"))
"""

import re
from pathlib import Path

from posttrain.errors import BadInput

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
SETTINGS = """\
name: {name}
summary: Sums of two numbers, to be replaced by what the model should get better at.
share: 0.1                   # of the SFT mix, where a plan says nothing else
k: 10                        # responses to each prompt, of which the best goes on
temperature: 1.0
max_tokens: 128             # longest response
hooks: [prompts, verify, revise, synthesize]    # functions of hooks.py to use; none is needed
"""
TEMPLATE = """\
Solve this step by step, and end with the number alone on the last line.

{{ question }}
"""
HOOKS = '''\
"""What makes a model better at {name}: prompts, a check, a second try, and examples of our own.

Every function is optional, sees one row a call, and asks its handle for whatever it needs.
`posttrain recipes test {name} --model MODEL` runs all of them on a handful of prompts.
"""

import random
from collections.abc import Iterable

from posttrain.hooks import Handle, PromptRequest, Verdict, fill
from posttrain.rows import Candidate, Example, Message, Prompt


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """`request.num` questions; what they are depends on the seed alone."""
    draw = random.Random(f"{name}/{{request.seed}}/{{request.round}}")
    for _ in range(request.num):
        a, b = draw.randint(10, 99), draw.randint(10, 99)
        yield Prompt(
            prompt=(Message(role="user", content=f"What is {{a}} + {{b}}?"),),
            capability="{name}",
            reference={{"answer": str(a + b)}},
        )


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict:
    """Whether the response ends with the right number; the evidence is for `revise` and people."""
    words = candidate.response.split()
    expected = str(prompt.reference["answer"])
    return Verdict(bool(words) and words[-1] == expected, f"expected {{expected}} at the end")


def revise(
    candidate: Candidate, prompt: Prompt, verdict: Verdict, handle: Handle
) -> str | None:
    """A second try at a prompt of which no response passed; None gives up."""
    told = Message(role="user", content=f"That is wrong: {{verdict.evidence}}. Try again.")
    (reply,) = handle.generate((*candidate.messages, told), max_tokens=64)
    return reply if reply.finished else None


def synthesize(prompt: Prompt, handle: Handle) -> Iterable[Example]:
    """Worked solutions: asked for with a template, kept where they end with the right number."""
    question = prompt.prompt[-1].content
    asked = Message(role="user", content=fill(__file__, "solve", question=question))
    for place, reply in enumerate(handle.generate([asked], n=2, max_tokens=128)):
        if reply.finished and reply.split()[-1:] == [prompt.reference["answer"]]:
            yield Example(
                id=f"{{prompt.id}}/solved-{{place}}",
                messages=(*prompt.prompt, Message(role="assistant", content=reply)),
                capability="{name}",
            )
'''


def new_recipe(folder: Path) -> None:
    """Write recipe.yaml, hooks.py and prompts/solve.jinja of a recipe named like its folder.

    Raises:
        BadInput: the folder is there, or its name is none.
    """
    name = folder.name
    if not NAME.fullmatch(name):
        raise BadInput(f"recipe {name}: expected small letters, digits, - and _")
    if folder.exists():
        raise BadInput(f"{folder}: already there; name a new recipe")
    (folder / "prompts").mkdir(parents=True)
    (folder / "prompts" / "solve.jinja").write_text(TEMPLATE)
    (folder / "hooks.py").write_text(HOOKS.format(name=name))
    # Without it the folder is no recipe: written last.
    (folder / "recipe.yaml").write_text(SETTINGS.format(name=name))
