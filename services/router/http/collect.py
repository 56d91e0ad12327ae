"""Put whole answers together from the core's responses."""

from dataclasses import dataclass, field

from stagemesh.v1.inference_pb2 import GenerateResponse, Usage
from stagemesh.v1.stage_pb2 import Token

from ..pump import Pump


@dataclass(slots=True)
class Answer:
    """One whole generation."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str = ""
    usage: Usage = field(default_factory=Usage)

    def add(self, response: GenerateResponse) -> None:
        """Take the next response."""
        self.text += response.text
        self.tokens.extend(response.tokens)
        self.finish_reason = response.finish_reason or self.finish_reason
        if response.HasField("usage"):
            self.usage.CopyFrom(response.usage)


async def collect(
    pump: Pump[GenerateResponse], prompts: int, n: int = 1
) -> tuple[GenerateResponse, list[Answer]]:
    """Return the very first response (for the headers) and the whole answers: the first prompt's `n`, and so on."""
    answers = [Answer() for _ in range(prompts * n)]
    first = await pump.peek()
    async for prompt, response in pump:
        answers[prompt * n + response.index].add(response)
    return first, answers


def usage_body(usages: list[Usage], n: int = 1) -> dict[str, int]:
    """Return OpenAI's `usage`, summed over answers; a prompt with `n` answers counts once."""
    prompt = sum(usage.prompt_tokens for usage in usages) // n
    completion = sum(usage.completion_tokens for usage in usages)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
