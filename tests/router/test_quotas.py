"""Quotas: what the buckets let through, what the file may say, and what a tenant is told at both doors."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.admission.quotas import Limits, QuotaExceeded, Quotas, Rate, Tenant
from stagemesh.services.router.auth import Auth, Credential, load_keys
from stagemesh.services.router.membership import Membership
from stagemesh.services.router.tenants import Tenants, load_tenants

from stagemesh import records
from stagemesh.errors import ConfigError, InvalidArgument, ResourceExhausted, Unavailable
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.v1.registry_pb2 import ServiceRecord

from .test_admission_doors import BODY, client
from .test_grpc_doors import Doors, ask

REQUESTS = Rate("requests_per_s", 2.0, 4.0)
TOKENS = Rate("tokens_per_s", 10.0, 50.0)


def quotas(**limits):
    return Quotas({"t": Tenant(limits=Limits(**limits))})


def tried(limits, tokens, now, share=1.0):
    """The bill, or the refusal."""
    try:
        return limits.enter("t", "m", tokens, now, share), None
    except QuotaExceeded as error:
        return None, error


@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.integers(0, 80), st.floats(0, 1), st.integers(0, 30), st.booleans()),
        max_size=100,
    ),
    st.sampled_from([1.0, 0.5, 1 / 3]),
)
def test_no_tenant_gets_more_than_its_rate_a_burst_and_one_request(moves, share):
    """Whatever comes in whatever order: tokens that were made, and requests let in, since the beginning."""
    limits = quotas(requests=REQUESTS, tokens=TOKENS, concurrent=5)
    now, let_in, made, running = 0.0, 0, 0.0, []
    for after, asked, part, prompt, end in moves:
        now += after
        bill, error = tried(limits, asked, now, share)
        if error is not None:
            assert error.retry_after_s > 0
            assert error.quota != "concurrent" or len(running) == max(1, int(5 * share))
        else:
            let_in += 1
            running.append((bill, asked * part, prompt))
            assert len(running) <= max(1, int(5 * share))
            limits.add(bill, prompt)
        if running and end:
            bill, used, prompt = running.pop(0)
            limits.leave(bill, used + prompt)
            made += used + prompt
        assert let_in <= REQUESTS.per_s * share * now + max(1.0, REQUESTS.burst * share) + 1e-6
        # What runs at once may each have had a prompt that nobody knew of.
        assert made <= TOKENS.per_s * share * now + max(1.0, TOKENS.burst * share) + 110 * 6


@given(st.floats(0.01, 5), st.integers(1, 200))
def test_who_comes_again_when_told_to_is_let_in(after, tokens):
    limits, now = quotas(requests=REQUESTS, tokens=TOKENS), 0.0
    for _ in range(20):
        now += after
        patience: list[str] = []
        while True:  # both buckets may ask for it, one after the other
            bill, error = tried(limits, tokens, now)
            if error is None:
                limits.leave(bill, tokens)
                break
            assert patience.count(error.quota) < 2, "but for what a float cannot tell"
            patience.append(error.quota)
            now += error.retry_after_s


def test_what_was_not_made_comes_back_and_what_began_elsewhere_is_charged_but_let_in():
    limits = quotas(tokens=TOKENS)
    bill = limits.enter("t", "m", 50, 0.0)
    with pytest.raises(
        QuotaExceeded, match=r"quota tokens_per_s of tenant 't': 10 tokens a second, 50 at once"
    ) as caught:
        limits.enter("t", "m", 20, 0.0)
    assert caught.value.retry_after_s == 2.0
    limits.leave(bill, 20)
    more = limits.enter("t", "m", 20, 0.0)
    begun = limits.enter("t", "m", 500, 0.0, begun=True)
    with pytest.raises(QuotaExceeded) as caught:
        limits.enter("t", "m", 1, 0.0)
    assert caught.value.retry_after_s == pytest.approx(49.1)
    limits.undo(begun)
    limits.leave(more, 0)
    limits.enter("t", "m", 30, 0.0)


def test_a_model_has_limits_of_its_own_beside_the_tenants_and_nothing_is_charged_for_a_refusal():
    limits = Quotas(
        {
            "t": Tenant(
                limits=Limits(requests=Rate("requests_per_s", 1, 3)), models={"m": Limits(concurrent=1)}
            )
        }
    )
    first = limits.enter("t", "m", 0, 0.0)
    for _ in range(5):
        with pytest.raises(
            QuotaExceeded, match="quota concurrent of tenant 't', model 'm': 1 requests at once"
        ):
            limits.enter("t", "m", 0, 0.0)
    limits.enter("t", "other", 0, 0.0)
    limits.leave(first, 0)
    limits.enter("t", "m", 0, 0.0)
    with pytest.raises(QuotaExceeded, match="quota requests_per_s"):
        limits.enter("t", "other", 0, 0.0)
    limits.enter("nobody", "m", 10**9, 0.0)


FILE = """
keys:
  k1: acme
  k2: {tenant: batch, max_priority: low}
tenants:
  acme: {weight: 3, requests_per_s: 20, tokens_per_min: 60000, burst_s: 2, concurrent: 16, models: {big: {concurrent: 2}}}
  batch:
"""


def test_the_file_of_keys_may_have_tenants(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(FILE)
    assert set(load_keys(path)) == {"k1", "k2"}
    acme = Tenant(
        3.0,
        Limits(Rate("requests_per_s", 20.0, 40.0), Rate("tokens_per_min", 1000.0, 2000.0), 16),
        {"big": Limits(concurrent=2)},
    )
    assert load_tenants(path) == {"acme": acme, "batch": Tenant()}
    path.write_text("k1: acme\n")
    assert load_tenants(path) == {}
    path.write_text("keys: {tenant: acme}\n")  # a key that is called so
    assert (load_keys(path), load_tenants(path)) == ({"keys": Credential("acme")}, {})


@pytest.mark.parametrize(
    ("tenants", "said"),
    [
        ("[a]", "tenants must be a mapping"),
        ("{a: 3}", r"tenants\.a must be a mapping"),
        ("{a: {weigth: 3}}", r"tenants\.a\.weigth is unknown; there are .*weight"),
        ("{a: {weight: 0}}", r"tenants\.a\.weight must be a number above 0"),
        ("{a: {weight: 1001}}", r"tenants\.a\.weight: 1001 is above 1000"),
        ("{a: {concurrent: 1.5}}", r"tenants\.a\.concurrent must be a whole number"),
        ("{a: {requests_per_s: true}}", r"tenants\.a\.requests_per_s must be a number"),
        ("{a: {tokens_per_s: 1, tokens_per_min: 9}}", "give tokens_per_s or tokens_per_min, not both"),
        ("{a: {models: {m/x: {concurrent: 1}}}}", r"tenants\.a\.models\.m/x"),
        ("{a: {models: {m: {weight: 1}}}}", r"tenants\.a\.models\.m\.weight is unknown"),
    ],
)  # fmt: skip
def test_a_bad_tenant_is_named_without_any_key(tmp_path, tenants, said):
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys: {{secret-key: a}}\ntenants: {tenants}\n")
    with pytest.raises(ConfigError, match=said) as caught:
        load_tenants(path)
    assert "secret-key" not in caught.value.message


def test_every_fault_is_said_at_once(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text("keys: {k: a}\ntenants: {a: {weight: 0, concurrent: 0}, b: {burst_s: x}}\n")
    with pytest.raises(ConfigError) as caught:
        load_tenants(path)
    assert caught.value.message.count("\n") == 2


def test_n_routers_divide_a_quota_and_follow_when_one_goes():
    membership = Membership(grace_s=5.0)
    tenants = Tenants(
        {"t": Tenant(limits=Limits(requests=Rate("requests_per_s", 4, 4)))}, membership, lambda: 0.0
    )

    def let_in(most=10):
        for number in range(most):
            try:
                with tenants.billed("t", "m") as billed:
                    billed.computed()
            except ResourceExhausted:
                return number
        return most

    def announce(name, there=True):
        record = ServiceRecord(kind="router", id=name)
        membership.change(
            records.service_key("router", name), records.to_json(record) if there else None, 0.0
        )

    assert tenants.share == 1.0
    announce("a")
    assert tenants.share == 1.0
    announce("b")
    assert tenants.share == 0.5
    assert let_in() == 2
    with pytest.raises(
        QuotaExceeded, match=r"2 requests a second, 2 at once at this router, which has 0\.5 of"
    ):
        tenants.billed("t", "m").__enter__()
    announce("b", there=False)
    assert tenants.share == 1.0


@pytest.mark.parametrize(
    ("error", "counts"),
    [(None, True), (InvalidArgument("x"), True), (Unavailable("x"), False), (RuntimeError("x"), False), (asyncio.CancelledError(), True)],
    ids=["nothing", "wrong", "unavailable", "a fault", "left"],
)  # fmt: skip
def test_what_fails_for_a_reason_of_ours_is_given_back(error, counts):
    limits = Limits(requests=Rate("requests_per_s", 1, 1), tokens=Rate("tokens_per_s", 1, 100))
    tenants = Tenants({"t": Tenant(limits=limits)}, Membership(grace_s=5.0), lambda: 0.0)
    billed = tenants.billed("t", "m", 60)
    billed.__enter__()
    billed.prompt(30)
    billed.__exit__(type(error) if error else None, error, None)
    if counts:
        with pytest.raises(QuotaExceeded, match="requests_per_s"):
            tenants.billed("t", "m", 100).__enter__()
    else:  # neither the request nor its tokens were charged
        tenants.billed("t", "m", 100).__enter__()


@pytest.fixture
async def doors(mesh, tmp_path):
    async def start(tenants, *behaviours, **config):
        path = tmp_path / "keys.yaml"
        path.write_text(f"keys: {{k1: one, k2: two, k3: three}}\ntenants: {tenants}\n")
        core = await mesh.start(*behaviours, api_keys=path, **config)
        return core, await mesh.enter(Doors(core))

    return start


def bearer(key):
    return {"authorization": f"Bearer {key}"}


async def test_a_quota_is_refused_by_name_at_both_doors_and_others_go_on(doors):
    core, door = await doors("{one: {requests_per_min: 1, burst_s: 60}, two: {weight: 3}}")
    async with client(core) as http:
        assert (await http.post("/v1/completions", json=BODY, headers=bearer("k1"))).status_code == 200
        refused = await http.post("/v1/completions", json=BODY, headers=bearer("k1"))
        assert refused.status_code == 429
        assert "quota requests_per_min of tenant 'one'" in refused.json()["error"]["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        with pytest.raises(Exception, match="quota requests_per_min") as caught:
            [chunk async for chunk in door.own.Generate(ask(), metadata=[("authorization", "Bearer k1")])]
        error = from_rpc_error(caught.value)
        assert isinstance(error, ResourceExhausted)
        assert 0 < error.retry_after_s <= 60
        assert (await http.post("/v1/completions", json=BODY, headers=bearer("k2"))).status_code == 200
        page = (await http.get("/metrics")).text
    assert 'stagemesh_tenant_refusals_total{quota="requests_per_min",tenant="one"} 2.0' in page
    assert 'tenant="three"' not in page


async def test_tokens_are_counted_as_made_and_requests_at_once_while_they_run(mesh, doors):
    core, _ = await doors("{one: {tokens_per_min: 60, concurrent: 1}}", {"0a": "hang"})
    async with client(core) as http:
        running = asyncio.create_task(http.post("/v1/completions", json=BODY, headers=bearer("k1")))
        async with asyncio.timeout(20):
            while core._gate.admission.active == 0:
                await asyncio.sleep(0.01)
        refused = await http.post("/v1/completions", json=BODY, headers=bearer("k1"))
        assert refused.status_code == 429
        assert "quota concurrent" in refused.json()["error"]["message"]
        mesh.stages["0a"].release.set()
        usage = (await running).json()["usage"]
        assert usage["total_tokens"] >= 4
        left = core.tenants._quotas._scopes["one", ""].tokens._level
        assert left == pytest.approx(60 - usage["total_tokens"], abs=2)


def test_a_credential_still_knows_its_tenant(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text(FILE)
    assert Auth(load_keys(path)).credential("Bearer k2").tenant == "batch"
