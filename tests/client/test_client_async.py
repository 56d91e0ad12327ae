import asyncio
import inspect
import subprocess
import sys

import numpy as np
import pytest

from stagemesh import AsyncClient, Client
from stagemesh.errors import NotFound, Unavailable


async def test_generate_stream_infer_embed(router):
    async with AsyncClient(router.address, timeout_s=20) as client:
        generation = await client.generate("demo", "hi")
        assert (generation.text, generation.cache, generation.finish_reason) == ("Hello", "miss", "length")
        stream = client.stream("demo", "hi")
        assert [chunk.text async for chunk in stream] == ["Hel", "lo", ""]
        assert [hop.replica_id for hop in stream.route] == ["a0", "b1"]
        outputs = await client.infer("demo", {"x": np.ones((2, 2), np.float32)})
        assert outputs["x_x2"].tolist() == [[2, 2], [2, 2]]
        assert (await client.embed("demo", ["ab"])).tolist() == [[2, 1]]
        assert [model.spec.name for model in await client.models()] == ["demo"]
        assert (await client.status()).etcd_connected


async def test_calls_run_at_once(router):
    async with AsyncClient(router.address, timeout_s=20) as client:
        texts = await asyncio.gather(*(client.generate("demo", "hi") for _ in range(20)))
    assert {generation.text for generation in texts} == {"Hello"}


async def test_leaving_a_stream_cancels_it(router):
    async with AsyncClient(router.address, timeout_s=20) as client, client.stream("endless", "hi") as stream:
        await anext(stream)
    assert await asyncio.to_thread(router.cancelled.wait, 10)


async def test_errors(router):
    async with AsyncClient(router.address, timeout_s=20) as client:
        with pytest.raises(NotFound):
            await client.embed("missing", "hi")
        with pytest.raises(Unavailable, match="replica b1"):
            await client.generate("breaks", "hi")
    async with AsyncClient("127.0.0.1:9") as client:
        with pytest.raises(Unavailable, match="nothing answers at"):
            await client.generate("demo", "hi")


def test_both_clients_offer_the_same():
    def methods(kind):
        return {
            name.removeprefix("a") if name == "aclose" else name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import stagemesh", ["grpc", "numpy", "torch", "typer"]),
        ("from stagemesh import Client", ["torch", "transformers", "typer", "aetcd", "stagemesh.oip"]),
        ("import stagemesh.cli", ["torch", "transformers", "stagemesh.services"]),
    ],
)
def test_imports_stay_light(statement, absent):
    code = f"{statement}; import sys; print([name for name in {absent!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
