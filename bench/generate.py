"""Decode tokens per second at 1, 8 and 16 concurrent streams, 64 tokens in and 64 out, greedy.

Contenders: two stages of one thread each; one stage of two threads; transformers' `generate` with two threads and
the same batch. Streams go through the router, as a user's do, and are read in this process.
"""

import asyncio
import contextlib
import functools
import gc

from bench.checkpoints import checkpoint
from bench.meshes import deployed, mesh, prompts, stream
from bench.options import Options, say
from bench.paired import Ratio, interleaved, paired_ratio
from bench.reference import Reference
from bench.result import Bound, Result, Series
from bench.streams import decode_rate
from stagemesh import AsyncClient

STREAMS = (1, 8, 16)
TOKENS_IN, TOKENS_OUT = 64, 64
ROUNDS = 5
BOUNDS = {
    "tokens_vs_hf_1_fp32": 1.3,
    "tokens_vs_hf_8_fp32": 2.2,
    "tokens_vs_hf_16_fp32": 2.2,
    "tokens_vs_hf_1_bf16": 1.2,
    "tokens_vs_hf_8_bf16": 1.6,
    "tokens_vs_hf_16_bf16": 1.6,
    "single_vs_hf_1": 1.5,
    "single_vs_hf_8": 2.0,
}
SPLIT, SINGLE, HF = "2 stages x 1 thread", "1 stage x 2 threads", "transformers, 2 threads"

Rates = dict[tuple[int, str], list[float]]


async def run(options: Options) -> Result:
    """Measure every model, dtype and number of streams, interleaved."""
    result = Result("generate", f"decode tokens/s, {TOKENS_IN} in + {TOKENS_OUT} out, greedy")
    models = [("tiny", "fp32")] if options.quick else [("tiny", "fp32"), ("small", "fp32"), ("small", "bf16")]
    single: dict[int, list[Ratio]] = {}
    async with contextlib.AsyncExitStack() as stack:
        split = await stack.enter_async_context(mesh(2, threads=1))
        one = await stack.enter_async_context(mesh(1, threads=2))
        async with split.client() as split_client, one.client() as one_client:
            for name, dtype in models:
                reference = await asyncio.to_thread(
                    Reference, await asyncio.to_thread(checkpoint, name), dtype
                )
                async with (
                    deployed(split, name, dtype, 2) as model_2,
                    deployed(one, name, dtype, 1) as model_1,
                ):
                    ours = {SPLIT: (split_client, model_2), SINGLE: (one_client, model_1)}
                    rates = await _measure(options, result, name, dtype, ours, reference)
                del reference
                gc.collect()
                for count in sorted({count for count, _ in rates}):
                    for contender in (SPLIT, SINGLE):
                        ratio = paired_ratio(rates[count, contender], rates[count, HF])
                        if name == "small" and contender == SPLIT:
                            key = f"tokens_vs_hf_{count}_{dtype}"
                            result.ratio(key, ratio, Bound(BOUNDS[key]))
                        elif name == "small":
                            single.setdefault(count, []).append(ratio)
                        else:
                            prefix = "tokens" if contender == SPLIT else "single"
                            result.ratio(f"{prefix}_vs_hf_{count}_tiny", ratio)
    for count, ratios in sorted(single.items()):
        key = f"single_vs_hf_{count}"
        bound = Bound(BOUNDS[key]) if key in BOUNDS else None
        result.ratio(key, min(ratios, key=lambda ratio: ratio.value), bound)
    if options.quick:
        result.not_measured = dict.fromkeys(BOUNDS, "--quick leaves `small` out")
    return result


async def _measure(
    options: Options,
    result: Result,
    name: str,
    dtype: str,
    ours: dict[str, tuple[AsyncClient, str]],
    reference: Reference,
) -> Rates:
    """Rates of each (streams, contender), one per round."""
    rates: Rates = {}
    new_tokens = 32 if options.quick else TOKENS_OUT
    for count in STREAMS[:2] if options.quick else STREAMS:
        tokens: dict[str, list[list[int]]] = {}
        contenders = [HF, *ours]
        rounds = options.times(ROUNDS)
        # One round more than is counted: the first warms up.
        for number, contender in interleaved(contenders, rounds + 1):
            batch = prompts(name, count, TOKENS_IN, seed=number)
            if contender == HF:
                rate, tokens[HF] = await asyncio.to_thread(reference.decode, batch, new_tokens)
            else:
                client, model = ours[contender]
                streams = await asyncio.gather(*(stream(client, model, ids, new_tokens) for ids in batch))
                rate = decode_rate(streams)
                tokens[contender] = [one.tokens for one in streams]
            if number:
                rates.setdefault((count, contender), []).append(rate)
        group = f"{name} {dtype}, {count} stream{'' if count == 1 else 's'}"
        for contender in contenders:
            result.series.append(Series(group, contender, "tok/s", rates[count, contender]))
        say(f"{group}: " + ", ".join(f"{c} {rates[count, c][-1]:.1f} tok/s" for c in contenders))
        result.notes.append(f"{group}: tokens equal to transformers' " + _equal(tokens))
    return rates


def _equal(tokens: dict[str, list[list[int]]]) -> str:
    share = functools.partial(_same, theirs=tokens[HF])
    return ", ".join(f"{share(found):.0%} ({name})" for name, found in tokens.items() if name != HF)


def _same(ours: list[list[int]], theirs: list[list[int]]) -> float:
    pairs = [a == b for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    return sum(pairs) / len(pairs)
