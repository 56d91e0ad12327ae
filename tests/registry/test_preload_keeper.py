"""What was learned survives a change of leader: a real etcd, two registries' keepers."""

from stagemesh.services.registry.leadership import Leadership
from stagemesh.services.registry.preload import Preloader
from stagemesh.services.registry.preload.keeper import WRITE_S, PreloadKeeper

from stagemesh import records
from stagemesh.etcd import Etcd


async def test_the_next_leader_reads_what_the_last_one_wrote(etcd: Etcd) -> None:
    one, other = Preloader(epoch_s=1e9), Preloader(epoch_s=1e9)
    for beat in range(60):
        one.observe("timer", 240.0 * beat)
    first = Leadership(etcd, "first", 5)
    keeper = PreloadKeeper(etcd, first, one)
    await keeper.step(0.0)
    assert not (await etcd.get_prefix(records.PRELOAD))[0], "it does not lead"
    assert await first.refresh()
    await keeper.step(15_000.0)
    await keeper.step(15_000.0 + WRITE_S)
    written = {each.key for each in (await etcd.get_prefix(records.PRELOAD))[0]}
    assert written == {records.preload_key("timer"), records.preload_key(".common")}
    await first.resign()

    await etcd.put(records.preload_key("broken"), b"{")
    second = Leadership(etcd, "second", 5)
    assert await second.refresh()
    await PreloadKeeper(etcd, second, other).step(15_200.0)
    assert other.keep_alive_s("timer", 15_200.0) == one.keep_alive_s("timer", 15_200.0)
    assert "models=1" in repr(other)
    await second.resign()
