"""Opens who answers a judge's questions, with what was answered before in this run.

Knows the kinds of judges that are models.

    asker = open_asker(inputs, VllmJudge(type="vllm", model="models/judge"))
"""

from posttrain.judging.askers import JUDGMENTS, Asker, ChatAsker, EngineAsker, remembered
from posttrain.settings.judges import EndpointJudge, VllmJudge
from posttrain.steps.fingerprint import ContentHashes
from posttrain.steps.output import Inputs


def open_asker(inputs: Inputs, settings: VllmJudge | EndpointJudge) -> Asker:
    """The model in the folder that is the input `judge`, or a server; the caller closes it."""
    folder = inputs.machine.parent / JUDGMENTS
    if isinstance(settings, EndpointJudge):
        return remembered(ChatAsker(settings), folder)
    hashes = ContentHashes(folder / "hashes.json")
    model, device = inputs["judge"], inputs.resources.device
    return remembered(EngineAsker(model, settings.engine, hashes, device), folder)
