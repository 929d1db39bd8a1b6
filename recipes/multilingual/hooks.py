"""Languages other than English: reasoning translated and solved again, answers compared.

Knows how a question gets into another language and what makes its solution to be believed: the
translation back says the same, the answer is the known one, and the language is right.

    posttrain recipes test multilingual --model MODEL --prompts questions.jsonl
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

from posttrain.hooks import Handle, PromptRequest, Rejected, Verdict, ask
from posttrain.ladders import FILLER, measures, needed
from posttrain.languages import answered_otherwise, language
from posttrain.rows import Candidate, Example, Message, Prompt, stable_seed
from posttrain.symbolic import final_answer, same_answer

from .ladder import questions

NAMES = {
    "de": "German",
    "fr": "French",
    "it": "Italian",
    "pt": "Portuguese",
    "hi": "Hindi",
    "es": "Spanish",
    "th": "Thai",
}


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """Phrases to translate, of six levels (`options: {levels: [1, 2]}`); see ladder.py."""
    return questions(request)


def synthesize(prompt: Prompt, handle: Handle) -> Iterator[Example | Rejected]:
    """A question with a known answer in another language, solved in it (section 4.3.2)."""
    if "answer" not in prompt.reference:
        yield Rejected("no known answer", prompt.prompt[-1].content)
        return
    expected = str(prompt.reference["answer"])
    question, options = prompt.prompt[-1].content, handle.options
    codes = list(options.get("into", NAMES))
    code = codes[stable_seed("language", prompt.id) % len(codes)]
    name = NAMES.get(code, code)
    (said,) = ask(handle, __file__, "translate", question=question, language=name)
    translated = said.strip()
    if not said.finished or language(translated, (*codes, "en")) not in (code, None):
        yield Rejected(f"{code}: translation in another language", translated)
        return
    (back,) = ask(handle, __file__, "back", question=translated)
    here, there = handle.embed([question, back])
    alike = sum(a * b for a, b in zip(here, there, strict=True))
    if alike < float(options.get("alike", 0.8)):
        yield Rejected(f"{code}: translation says something else", f"{alike:.2f}: {back}")
        return
    solutions = ask(
        handle,
        __file__,
        "solve",
        n=int(options.get("solutions", 4)),
        question=translated,
        language=name,
    )
    whole = [one for one in solutions if one.finished]
    right = [one for one in whole if same_answer(final_answer(one), expected)]
    kept = [one for one in right if not answered_otherwise(translated, one, "language")]
    if not kept:
        told = "solved in another language" if right else "another answer"
        yield Rejected(f"{code}: {told}", translated)
        return
    turns = (
        Message(role="user", content=translated),
        Message(role="assistant", content=str(kept[0])),
    )
    yield Example(messages=turns, capability="multilingual", source=f"reasoning/{code}")


def revise(candidate: Candidate, prompt: Prompt, verdict: Verdict, handle: Handle) -> str | None:
    """A second try that knows only that the first was wrong."""
    (said,) = ask(handle, __file__, "again", before=list(candidate.messages))
    return said if said.finished else None


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict | None:
    """Whether the response says `reference.answer`: a number at its end, or words in its first
    line, but for case, accents' form and stops.

    None of a free dialog.
    """
    if not prompt.reference:
        return None
    answer = str(needed(prompt, "answer", "multilingual"))
    if re.search(r"\d", answer):
        number = final_answer(candidate.response)
        return Verdict(same_answer(number, answer), f"the response ends with {number!r}")
    expected, stated = normalised(answer), normalised(candidate.response)
    return Verdict(stated == expected, f"the response says {stated!r}, expected {expected!r}")


def normalised(text: str) -> str:
    """The first line without an opening, folded: what two equal answers have in common."""
    text = FILLER.sub("", text.strip(), count=1)
    first = next((line for line in text.splitlines() if line.strip()), "")
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFC", first).casefold()))


def evaluate(
    candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
) -> Mapping[str, float]:
    """Share of answers hardly a word of which is expected, filler, length, pass rate by level."""
    return measures(candidates, prompts, {"wrong_language_share": _is_elsewhere})


def _is_elsewhere(response: str, prompt: Prompt) -> bool:
    expected = set(normalised(str(prompt.reference.get("answer", ""))).split())
    said = normalised(response).split()
    return bool(said) and sum(word in expected for word in said) * 3 < len(said)
