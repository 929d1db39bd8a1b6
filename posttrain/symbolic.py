r"""Answers to mathematical questions: how a response states one, and whether two mean the same.

1/2 is 0.5, and x(x+1) is x^2+x. Knows plain numbers itself; everything else is compared by the
library math-verify in a process of its own, which is ended where it takes too long: `9^{9^9}` would
keep it busy for ever.

    same_answer(final_answer(response), "\\frac{1}{2}")
"""

import atexit
import contextlib
import json
import re
import selectors
import subprocess
import sys
import threading
from fractions import Fraction

SECONDS = 5.0
"""Longest comparison; one that takes longer counts as different."""
START_SECONDS = 60.0
"""Longest start of the process: it imports a computer algebra system."""
LONGEST = 400
"""Characters of an answer; a longer one is none."""
_STATED = re.compile(r"(?<!\w)[-\u2212]?\s?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d{1,40})?(?:/\d{1,40})?")
_WORKER = """
import json, logging, resource, signal, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
logging.disable(logging.CRITICAL)
from math_verify import LatexExtractionConfig, parse, verify
# LaTeX alone: the other reader of the library evaluates what it reads as Python.
config = [LatexExtractionConfig()]
def read(text):
    return parse("$" + text.strip().strip("$") + "$", config, parsing_timeout=None)
print("ready", flush=True)
for line in sys.stdin:
    signal.alarm(10)  # ends the process, whoever else is gone
    try:
        first, second = (read(text) for text in json.loads(line))
        same = bool(first and second and verify(first, second, timeout_seconds=None))
    except Exception:
        same = False
    signal.alarm(0)
    print(json.dumps(same), flush=True)
"""


def same_answer(stated: str, expected: str) -> bool:
    """Whether two answers mean the same; what cannot be read is equal to nothing but itself."""
    stated, expected = stated.strip(), expected.strip()
    if stated == expected:
        return bool(stated)
    numbers = _number(stated), _number(expected)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if not stated or not expected or max(len(stated), len(expected)) > LONGEST:
        return False
    return _COMPARER.same(stated, expected)


def final_answer(text: str) -> str:
    r"""What stands in the last \boxed{}, else the last number; empty if there is neither."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return last_number(text)
    depth = 0
    for place, letter in enumerate(text[start + 6 :], start + 6):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return text[start + 7 : place].strip()
    return ""


def last_number(text: str) -> str:
    """The last number a text states; thousands separators and a full stop after it are no digits.

    A minus sign counts only where it is no subtraction: `9-5` ends with 5, `= -5` with -5.
    """
    matches = list(_STATED.finditer(text))
    if not matches:
        return ""
    digits = matches[-1].group().replace("\u2212", "-").replace(",", "")
    before = text[: matches[-1].start()].rstrip()
    if digits.startswith("-") and before and (before[-1].isdigit() or before[-1] in ")]"):
        digits = digits[1:]
    return digits.replace(" ", "")


def _number(text: str) -> Fraction | None:
    """The value of a plain number or fraction."""
    text = text.replace("\u2212", "-").replace(" ", "")
    if len(text) > LONGEST or not _NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


class _Comparer:
    """A process that compares, started when it is first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def same(self, stated: str, expected: str) -> bool:
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            # The process may have died of the question before.
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps([stated, expected]) + "\n")
                process.stdin.flush()
                return self._answer(process, SECONDS) == "true"
            self.end()
            return False

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._answer(self._process, START_SECONDS)
        return self._process

    def _answer(self, process: subprocess.Popen[str], seconds: float) -> str:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if selector.select(seconds):
                return process.stdout.readline().strip()
        self.end()
        return ""

    def end(self) -> None:
        """Stop the process; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


_COMPARER = _Comparer()
atexit.register(_COMPARER.end)
