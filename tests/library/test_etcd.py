"""Keys, connections and failover, against real etcd processes."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from stagemesh import etcd as etcd_module
from stagemesh.errors import ConfigError, Unavailable
from stagemesh.etcd import Etcd
from tests.library.etcd_process import EtcdProcess, free_port


async def test_put_get_delete(etcd):
    assert await etcd.get("/a") is None
    revision = await etcd.put("/a", b"1")
    found = await etcd.get("/a")
    assert (found.key, found.value, found.mod_revision, found.create_revision) == (
        "/a",
        b"1",
        revision,
        revision,
    )
    again = await etcd.put("/a", b"2")
    found = await etcd.get("/a")
    assert (found.value, found.mod_revision, found.create_revision) == (b"2", again, revision)
    assert await etcd.delete("/a") is True
    assert await etcd.delete("/a") is False


async def test_prefix_is_read_whole_in_pages_at_one_revision(etcd, monkeypatch):
    monkeypatch.setattr(etcd_module, "_PAGE", 3)
    for number in range(10):
        await etcd.put(f"/p/{number}", bytes([number]))
    await etcd.put("/p0", b"beside the prefix")
    last = await etcd.put("/o", b"before the prefix")
    items, revision = await etcd.get_prefix("/p/")
    assert [(item.key, item.value) for item in items] == [(f"/p/{n}", bytes([n])) for n in range(10)]
    assert revision == last
    assert len((await etcd.get_prefix(""))[0]) == 12
    assert await etcd.delete_prefix("/p/") == 10
    assert [item.key for item in (await etcd.get_prefix(""))[0]] == ["/o", "/p0"]


async def test_compare_and_put(etcd):
    assert await etcd.compare_and_put("/k", b"first", expected_mod_revision=0)
    assert not await etcd.compare_and_put("/k", b"second", expected_mod_revision=0)
    # The same value is no excuse: the key was there.
    assert not await etcd.compare_and_put("/k", b"first", expected_mod_revision=0)
    found = await etcd.get("/k")
    assert found.value == b"first"
    assert await etcd.compare_and_put("/k", b"second", expected_mod_revision=found.mod_revision)
    assert not await etcd.compare_and_put("/k", b"third", expected_mod_revision=found.mod_revision)
    assert (await etcd.get("/k")).value == b"second"


async def test_one_of_many_claims_wins(etcd, other):
    claims = [
        (etcd if n % 2 else other).compare_and_put("/leader", b"%d" % n, expected_mod_revision=0)
        for n in range(20)
    ]
    won = await asyncio.gather(*claims)
    assert sum(won) == 1
    assert (await etcd.get("/leader")).value == b"%d" % won.index(True)


async def test_no_etcd_is_one_clear_line():
    address = f"127.0.0.1:{free_port()}"
    etcd = Etcd(address, timeout_s=0.5)
    with pytest.raises(Unavailable) as caught:
        await etcd.start()
    assert caught.value.message == f"etcd at {address} does not answer: connection refused"


async def test_start_waits_for_an_etcd_that_is_starting(tmp_path):
    process = EtcdProcess(tmp_path)
    etcd = Etcd(process.address, timeout_s=10)
    starting = asyncio.create_task(etcd.start())
    await asyncio.sleep(0.3)
    assert not starting.done()
    await process.start()
    await starting
    assert etcd.connected
    await etcd.close()
    await process.stop()


@pytest.mark.parametrize("bad", ["", "nowhere", "host:", "host:99999", ":1,", "a:1,b"])
def test_endpoints_that_cannot_be(bad):
    with pytest.raises(ConfigError, match="etcd"):
        Etcd(bad)


def test_certificate_without_key(tmp_path):
    with pytest.raises(ConfigError, match="go together"):
        Etcd("h:1", cert=tmp_path / "c.pem")
    with pytest.raises(ConfigError, match="cannot read the CA file"):
        Etcd("h:1", ca=tmp_path / "absent.pem")


async def test_connected_follows_etcd(etcd, etcd_process, eventually):
    assert etcd.connected
    await etcd_process.stop()
    await eventually(lambda: not etcd.connected)
    await etcd_process.start()
    await eventually(lambda: etcd.connected)


async def test_operations_ride_over_a_short_restart(etcd, etcd_process):
    await etcd.put("/k", b"1")
    await etcd_process.stop()
    reading = asyncio.create_task(etcd.get("/k"))
    await asyncio.sleep(0.3)
    await etcd_process.start()
    assert (await reading).value == b"1"


async def test_dead_endpoint_is_passed_over(etcd_process):
    etcd = Etcd(f"127.0.0.1:{free_port()},{etcd_process.address}", timeout_s=3)
    await etcd.start()
    await etcd.put("/k", b"1")
    assert (await etcd.get("/k")).value == b"1"
    await etcd.close()


async def test_cluster_member_lost(tmp_path, follow, eventually):
    members = [EtcdProcess(tmp_path, name=f"m{n}") for n in range(3)]
    cluster = ",".join(member.cluster for member in members)
    for member in members:
        member.cluster = cluster
    await asyncio.gather(*(member.start() for member in members))
    etcd = Etcd(",".join(member.address for member in members), timeout_s=10)
    try:
        await etcd.start()
        lease = await etcd.lease(2)
        await lease.put("/t/leased", b"1")
        table = follow(etcd, "/t/")
        await eventually(lambda: table.items == {"/t/leased": b"1"})
        await members[0].stop()  # the one in use: endpoints are taken in order
        await etcd.put("/t/after", b"2")
        await eventually(lambda: table.items == {"/t/leased": b"1", "/t/after": b"2"})
        await asyncio.sleep(2)
        assert {item.key for item in (await etcd.get_prefix("/t/"))[0]} == {"/t/leased", "/t/after"}
    finally:
        await etcd.close()
        await asyncio.gather(*(member.stop() for member in members))


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[Path, Path, Path]:
    (tmp_path / "ext").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl(
        tmp_path,
        "req",
        "-x509",
        *new_key,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=ca",
        "-days",
        "2",
    )
    _openssl(tmp_path, "req", *new_key, "-keyout", "key.pem", "-out", "csr", "-subj", "/CN=etcd")
    _openssl(
        tmp_path, "x509", "-req", "-in", "csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-out", "cert.pem", "-days", "2", "-extfile", "ext",
    )  # fmt: skip
    return tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"


async def test_tls_with_client_certificate(tmp_path, certificates):
    cert, key, ca = certificates
    process = EtcdProcess(tmp_path, tls=certificates)
    await process.start()
    etcd = Etcd(process.address, ca=ca, cert=cert, key=key)
    stranger = Etcd(process.address, ca=ca, timeout_s=1)
    plain = Etcd(process.address, timeout_s=1)
    try:
        await etcd.start()
        await etcd.put("/k", b"1")
        assert (await etcd.get("/k")).value == b"1"
        for client in (stranger, plain):
            with pytest.raises(Unavailable):
                await client.start()
    finally:
        await etcd.close()
        await process.stop()
