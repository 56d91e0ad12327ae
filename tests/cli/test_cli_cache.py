"""`stagemesh cache stats|invalidate` on real caches."""

import asyncio
import json

from tests.cache.test_cache_crash import Caches, caches, has, put

__all__ = ["caches"]


async def run(stagemesh, *arguments):
    return await asyncio.to_thread(stagemesh, "cache", *arguments)


async def test_stats_and_invalidation_of_every_cache(caches: Caches, stagemesh, router):
    one, two = await caches.start("one"), await caches.start("two")
    for cache in (one, two):
        await put(cache, "a", tags=["model:m", "namespace:n", "tag:q"])
        await put(cache, "b", tags=["model:m", "revision:r"])
        assert await has(cache, "a")
    for record in await caches.records():
        router.services.append(record)
    target = ("--target", router.address)

    found = json.loads((await run(stagemesh, "stats", *target, "--json")).stdout)["caches"]
    assert [(each["entries"], each["hits"], each["hit_rate"], each["behind"]) for each in found] == [
        (2, 1, 1.0, "memory")
    ] * 2
    table = (await run(stagemesh, "stats", *target)).stdout
    assert all(address in table for address in caches.addresses.values())

    result = await run(
        stagemesh, "invalidate", "--model", "m", "--namespace", "n", "--tag", "q", *target, "--json"
    )
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["entries"], said["reached"], said["announced"], said["not_reached"]) == (2, 2, True, [])
    for cache in (one, two):
        assert not await has(cache, "a")
        assert await has(cache, "b")

    await caches.kill("two")
    lost = caches.addresses["two"]
    result = await run(stagemesh, "invalidate", "--prefix", "revision:", *target)
    assert result.exit_code == 0
    assert result.stdout == "1 entries dropped on 1 caches\n"
    assert lost in result.stderr
    found = json.loads((await run(stagemesh, "stats", *target, "--json")).stdout)["caches"]
    assert sorted("error" in each for each in found) == [False, True]

    await caches.etcd_process.stop()
    direct = ("--cache", caches.addresses["one"])
    result = await run(stagemesh, "invalidate", "--all", *direct)
    assert result.exit_code == 1
    assert "not announced" in result.stderr


def test_what_is_wrong_is_said_in_one_line(stagemesh, router):
    for arguments, words in (
        (("invalidate",), "--all"),
        (("invalidate", "--all", "--model", "m"), "--all"),
        (("invalidate", "--all", "--cache", "nowhere"), "'nowhere' is not host:port"),
        (("stats", "--target", router.address), "knows of no cache"),
    ):
        result = stagemesh("cache", *arguments)
        assert result.exit_code == 1
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert stagemesh("cache", "invalidate", "--colour").exit_code == 2
    assert "--namespace" in stagemesh("cache", "invalidate", "--help").stdout
