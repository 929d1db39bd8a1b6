"""Prompts for rhymes, a check by the last letters, and a poem of our own."""

from collections.abc import Iterable

from posttrain.hooks import Handle, PromptRequest, Verdict, fill
from posttrain.rows import Candidate, Example, Message, Prompt

WORDS = ("light", "stone", "rain", "gold", "tree", "hand")


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """One word each, again from the first when they are used up."""
    for place in range(request.num):
        word = WORDS[place % len(WORDS)]
        text = f"a rhyme for {word} ({place})?"
        yield Prompt(
            prompt=(Message(role="user", content=text),),
            capability="rhymes",
            reference={"word": word},
        )


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict:
    """Whether the response ends with the word's last two letters."""
    word = prompt.reference["word"]
    return Verdict(candidate.response.strip().endswith(word[-2:]), f"a rhyme for {word}")


def synthesize(prompt: Prompt, handle: Handle) -> Iterable[Example]:
    """A pair of words, without a model."""
    word = prompt.reference["word"]
    poem = fill(__file__, "poem", word=word, other=f"b{word[-3:]}")
    answer = Message(role="assistant", content=poem)
    yield Example(messages=(*prompt.prompt, answer), capability="rhymes")
