"""Answers by meaning through a whole mesh: a real encoder, a real cache, a generator; learning, serving, and stopping."""

import asyncio

import grpc
import pytest

from stagemesh.local import deployment
from stagemesh.local.mesh import LocalMesh
from stagemesh.v1 import inference_pb2, registry_pb2, semantic_pb2
from stagemesh.v1.inference_pb2_grpc import InferenceServiceStub
from stagemesh.v1.semantic_pb2_grpc import SemanticServiceStub

from .conftest import ENCODER

CITIES = [
    *(
        "France",
        "Spain",
        "Italy",
        "Norway",
        "Poland",
        "Greece",
        "Kenya",
        "Egypt",
        "Peru",
        "Chile",
        "Japan",
        "India",
    ),
    *("Turkey", "Cuba", "Ghana", "Nepal"),
]
HIT, MISS = inference_pb2.CACHE_STATUS_HIT, inference_pb2.CACHE_STATUS_MISS
SEMANTIC = inference_pb2.CACHE_STATUS_SEMANTIC


async def eventually(look, timeout_s=60):
    async with asyncio.timeout(timeout_s):
        while not (found := await look()):
            await asyncio.sleep(0.05)
        return found


@pytest.mark.asyncio(loop_scope="session")
async def test_it_learns_serves_says_so_and_stops_when_it_is_wrong(llama):
    memory = 2 * 2**30
    async with (
        LocalMesh(stages=1, replicas=1, http_port=0, grpc_port=0, threads=1, memory=memory) as mesh,
        mesh.client() as client,
    ):
        settings = registry_pb2.Semantic(
            enabled=True,
            encoder=str(ENCODER),
            allowed_false_hit_rate=0.2,
            confidence=0.8,
            verify_share=1.0,
            min_similarity=0.6,
        )
        request = registry_pb2.DeployRequest(source=str(llama), name="g", semantic=settings)
        spec = await deployment.deploy(mesh.registry_address, request)
        assert spec.semantic.encoder == "model"  # the folder's name; it became a model of its own
        await asyncio.gather(mesh.wait_ready("g", timeout_s=120), mesh.wait_ready("model", timeout_s=120))
        status = await client.status()
        (cache,) = [each.address for each in status.services if each.kind == "cache"]
        async with (
            grpc.aio.insecure_channel(mesh.grpc_address) as channel,
            grpc.aio.insecure_channel(cache) as inner,
        ):
            router, semantic = InferenceServiceStub(channel), SemanticServiceStub(inner)

            async def ask(prompt, *, biased=True, **control):
                """One token over and over, whatever is asked; without the bias, another answer for each prompt."""
                generate = inference_pb2.GenerateRequest(
                    model="g", prompt=prompt, max_tokens=6, temperature=0, ignore_eos=True
                )
                if biased:
                    generate.logit_bias[7] = 100.0
                generate.cache_control.SetInParent()
                for name, value in control.items():
                    setattr(generate.cache_control, name, value)
                call = router.Generate(generate, timeout=60)
                chunks = [chunk async for chunk in call]
                trailing = dict(list(await call.trailing_metadata()))
                return chunks[0], trailing

            async def report():
                found = await semantic.Report(semantic_pb2.CacheReportRequest(model="g"), timeout=10)
                return found.models[0]

            def sampled(count):
                async def look():
                    found = await report()
                    return found if sum(band.samples for band in found.semantic.bands) >= count else None

                return look

            async def kept(count):
                async def look():
                    return (await report()).semantic.entries >= count

                await eventually(look)

            for city in CITIES:
                first, _ = await ask(f"What is the capital of {city}?")
                assert first.cache == MISS
            await kept(len(CITIES))
            assert (await report()).semantic.state == "learning"
            # Nothing is served before there is evidence, and what is computed anyway is the evidence.
            served_at = None
            for number, city in enumerate(CITIES):
                first, trailing = await ask(f"Could you tell me what the capital of {city} is?")
                if first.cache == SEMANTIC:
                    served_at = number
                    break
                await eventually(sampled(number + 1))
            assert served_at is not None
            assert served_at >= 10
            assert first.semantic.similarity > 0.6
            assert 0 < first.semantic.false_hit_bound <= 0.2
            assert not first.resume_token
            assert trailing["stagemesh-cache"] == "semantic"
            assert float(trailing["x-stagemesh-cache-similarity"]) > 0.6
            assert 0 < float(trailing["x-stagemesh-cache-false-hit-bound"]) <= 0.2
            # The real answer is computed afterwards, and kept as an answer to this very question.

            async def verified():
                found = (await report()).semantic
                return found if found.verified else None

            after = await eventually(verified)
            assert (after.state, after.false_hits, after.served) == ("serving", 0, 1)
            assert (await ask(f"Could you tell me what the capital of {CITIES[served_at]} is?"))[
                0
            ].cache == HIT
            # Who wants no such answer gets none; what differs by a word that counts is another question.
            city = CITIES[0]
            assert (await ask(f"Please tell me the capital of {city}.", no_semantic=True))[0].cache == MISS
            assert (await ask(f"What is not the capital of {city}?"))[0].cache == MISS
            assert (await ask("What is the capital of Bolivia?"))[0].cache == MISS
            # From now on answers do depend on the question: a hit is wrong, is found out, and none follows.
            await ask("What is the capital of Cuba?", biased=False)
            before = (await report()).semantic.entries

            async def indexed():
                return (await report()).semantic.entries >= before

            await eventually(indexed)

            async def wrong():
                found = await report()
                return found if sum(band.false_samples for band in found.semantic.bands) else None

            await ask("Could you tell me what the capital of Cuba is?", biased=False)
            last = await eventually(wrong)
            band = next(band for band in last.semantic.bands if band.false_samples)
            assert band.bound > 0.2
            assert not band.serves

            async def counted():
                found = await report()
                return found if found.usage.semantic_hits else None

            usage = (await eventually(counted)).usage
            assert usage.tokens_saved >= 6
            assert usage.exact_hits >= 1
            assert usage.lookups > 2 * len(CITIES) - 10
