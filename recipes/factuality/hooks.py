"""Facts: what the model knows is answered, what it is sure of and wrong about is refused.

Knows the probe of section 4.3.6 and how a refusal reads. Knows no fact itself.

    posttrain recipes test factuality --model MODEL
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from posttrain.hooks import Handle, PromptRequest, Rejected, Reply, Verdict, ask
from posttrain.ladders import FILLER, measures, needed
from posttrain.rows import Candidate, Example, Message, Prompt, stable_seed

from .ladder import REFUSED, questions


def prompts(request: PromptRequest, handle: Handle) -> Iterable[Prompt]:
    """Questions about made-up countries, of six levels (`options: {levels: [1, 2]}`)."""
    return questions(request)


def synthesize(prompt: Prompt, handle: Handle) -> Iterator[Example | Rejected]:
    """The knowledge probe: snippet, question, answers, correctness, informativeness, refusal."""
    if "text" not in prompt.reference:
        yield Rejected("no text to ask about", prompt.prompt[-1].content)
        return
    text, options = str(prompt.reference["text"]), handle.options
    (question,) = ask(handle, __file__, "question", text=text)
    if not question.finished or not question.strip():
        yield Rejected("no whole question", question)
        return
    asked = Message(role="user", content=question.strip())
    answers = handle.generate([asked], n=int(options.get("samples", 10)))
    right, wrong = [], []
    for answer in answers:
        variables = {"question": asked.content, "response": str(answer)}
        correct = handle.judge("factual", {"text": text, **variables})
        informative = handle.judge("informative", variables)
        if correct is None or informative is None or not answer.finished:
            continue
        if correct.score == correct.maximum:
            right.append(answer)
        elif informative.score == informative.maximum:
            wrong.append(answer)
    if len(wrong) >= float(options.get("sure", 0.7)) * len(answers):
        yield _example(asked, _refusal(asked.content, prompt.id, handle), "refusal")
    elif right and len(right) >= float(options.get("known", 0.7)) * len(answers):
        yield _example(asked, _commonest(right), "known")
    else:
        told = f"{len(right)} right and {len(wrong)} wrong of {len(answers)}"
        yield Rejected("neither known nor consistently wrong", f"{asked.content}: {told}")


def _commonest(answers: Sequence[Reply]) -> str:
    """What is said most often; of those the first."""
    return str(Counter(answers).most_common(1)[0][0])


def _refusal(question: str, row_id: str, handle: Handle) -> str:
    texts = list(handle.options.get("refusals", ()))
    if texts:
        return str(texts[stable_seed("refusal", row_id) % len(texts)])
    (said,) = ask(handle, __file__, "refusal", question=question)
    return str(said)


def _example(asked: Message, said: str, how: str) -> Example:
    turns = (asked, Message(role="assistant", content=said))
    return Example(messages=turns, capability="factuality", source=how)


def verify(candidate: Candidate, prompt: Prompt, handle: Handle) -> Verdict | None:
    """Whether the response says `reference.answer`, or refuses where that is null.

    None of a free dialog.
    """
    if not prompt.reference:
        return None
    expected = needed(prompt, "answer", "factuality")
    text = candidate.response
    if expected is None:
        refused = REFUSED.search(text) is not None
        return Verdict(refused, "refused" if refused else "invented: nobody knows this")
    if REFUSED.search(text):
        return Verdict(False, f"refused, expected {expected}")
    first = next((line for line in FILLER.sub("", text, count=1).splitlines() if line.strip()), "")
    words = re.findall(r"\w+", first)
    # Of two names the last one counts: an answer may repeat the question.
    right = bool(words) and words[-1].casefold() == str(expected).casefold()
    return Verdict(right, f"the response says {first.strip()!r}, expected {expected}")


def evaluate(
    candidates: Sequence[Candidate], prompts: Sequence[Prompt], handle: Handle
) -> Mapping[str, float]:
    """Shares of inventions and of needless refusals, filler, length, pass rate by level."""

    def invented(response: str, prompt: Prompt) -> bool:
        return prompt.reference.get("answer") is None and REFUSED.search(response) is None

    def refused(response: str, prompt: Prompt) -> bool:
        return prompt.reference.get("answer") is not None and REFUSED.search(response) is not None

    return measures(
        candidates, prompts, {"invented_share": invented, "needless_refusal_share": refused}
    )
