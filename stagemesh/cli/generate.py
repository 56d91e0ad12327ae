"""`generate`: streams a completion and says how it was served."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from stagemesh.cli.guard import one_line_errors
from stagemesh.cli.options import DEFAULT_ADDRESS, Address, ApiKey, CacheControl, Json, Timeout
from stagemesh.client import Client, Generation
from stagemesh.errors import InvalidArgument


@one_line_errors
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads it from stdin.")],
    model: Annotated[str, typer.Option(help="Which model; not needed when only one is deployed.")] = "",
    chat: Annotated[bool, typer.Option("--chat", help="Send it as a user's chat message.")] = False,
    system: Annotated[str, typer.Option(help="System message, with --chat.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="New tokens at most.", show_default=False)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", show_default=False)] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus.", show_default=False)] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest.", show_default=False)] = None,
    min_p: Annotated[float | None, typer.Option(help="Relative floor.", show_default=False)] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed, the same text.", show_default=False)
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends it; may be repeated.")] = None,
    stop_token_id: Annotated[
        list[int] | None, typer.Option(help="Token that ends it; may be repeated.")
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end token.")] = False,
    min_tokens: Annotated[
        int | None, typer.Option(help="Nothing ends it before.", show_default=False)
    ] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="-2 to 2.", show_default=False)] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="-2 to 2.", show_default=False)] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 0; 1 is off.", show_default=False)
    ] = None,
    logit_bias: Annotated[
        list[str] | None, typer.Option(help="TOKEN_ID=VALUE, -100 to 100; may be repeated.")
    ] = None,
    logprobs: Annotated[
        int | None, typer.Option(help="Alternatives per token, with --json.", show_default=False)
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", help="How many answers; several come when they are whole.", show_default=False),
    ] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Look up and store the answer.")] = True,
    cache_control: CacheControl = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 120.0,
    as_json: Json = False,
) -> None:
    """Generate text, streaming it to stdout; route, tokens/s and cache go to stderr."""
    text = sys.stdin.read() if prompt == "-" else prompt
    messages = [{"role": "user", "content": text}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    with Client(address, api_key=api_key or None, timeout_s=timeout) as client:
        stream = client.stream(
            model or only_model(client),
            None if chat else text,
            messages=messages if chat else None,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            seed=seed,
            stop=stop or (),
            stop_token_ids=stop_token_id or (),
            ignore_eos=ignore_eos,
            min_tokens=min_tokens,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            repetition_penalty=repetition_penalty,
            logit_bias=biases(logit_bias or ()),
            logprobs=logprobs,
            n=n,
            cache=cache,
            cache_control=cache_control,
        )
        with stream:
            for chunk in stream:
                if not as_json and (n or 1) == 1:
                    typer.echo(chunk.text, nl=False)
            generation = stream.generation()
    if as_json:
        typer.echo(json.dumps(as_dict(generation)))
    else:
        for choice in generation.choices if (n or 1) > 1 else ():
            typer.echo(f"--- {choice.index} ({choice.finish_reason})\n{choice.text}")
        typer.echo()
        typer.echo(summary(generation), err=True)


def biases(words: Sequence[str]) -> dict[int, float]:
    """`TOKEN_ID=VALUE` words as a mapping; raises `InvalidArgument` for anything else."""
    found = {}
    for word in words:
        token, _, value = word.partition("=")
        try:
            found[int(token)] = float(value)
        except ValueError:
            raise InvalidArgument(
                f"--logit-bias: {word[:40]!r} is not TOKEN_ID=VALUE", field="logit_bias"
            ) from None
    return found


def only_model(client: Client) -> str:
    """The name of the one deployed model; raises `InvalidArgument` when there is none or a choice."""
    names = [model.spec.name for model in client.models()]
    if len(names) == 1:
        return names[0]
    found = f"deployed are {', '.join(names)}" if names else "none is deployed"
    raise InvalidArgument(f"--model: say which model ({found})", field="model")


def summary(generation: Generation) -> str:
    """One line: route, tokens per second, cache."""
    return (
        f"route: {route_words(generation)} | {generation.usage.completion_tokens} tokens, "
        f"{generation.tokens_per_second:.1f} tokens/s | cache {generation.cache or 'unknown'} | "
        f"finish {generation.finish_reason or 'unknown'}"
    )


def route_words(generation: Generation) -> str:
    """`stage 0 -> replica, stage 1 -> replica`, or that no stage was needed."""
    hops = [f"stage {hop.stage} -> {hop.replica_id}" for hop in generation.route]
    return ", ".join(hops) or "none (answered by the cache)"


def as_dict(generation: Generation) -> dict[str, object]:
    """For --json."""
    return {**dataclasses.asdict(generation), "tokens_per_second": generation.tokens_per_second}
