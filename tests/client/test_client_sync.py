import numpy as np
import pytest

from stagemesh import Client
from stagemesh.errors import DeadlineExceeded, InvalidArgument, NotFound, ResourceExhausted, Unavailable


@pytest.fixture
def client(router):
    with Client(router.address, timeout_s=20) as client:
        yield client


def test_generate_gathers_the_stream(client):
    generation = client.generate("demo", "hi", max_tokens=3)
    assert generation.text == "Hello"
    assert generation.token_ids == (7, 8, 9)
    assert generation.logprobs[0] == -0.5
    assert generation.finish_reason == "length"
    assert (generation.usage.prompt_tokens, generation.usage.completion_tokens) == (4, 3)
    assert [(hop.stage, hop.replica_id) for hop in generation.route] == [(0, "a0"), (1, "b1")]
    assert generation.cache == "miss"
    assert generation.request_id == "r-1"
    assert generation.timings[0].compute_s == pytest.approx(0.0015)
    assert (generation.timings[0].bubble_s, generation.timings[0].rows) == (pytest.approx(0.00025), 12)
    assert [(time.steps, time.compute_s) for time in generation.first_timings] == [(1, pytest.approx(0.0009))]
    assert 0 < generation.first_token_s <= generation.duration_s
    assert generation.tokens_per_second == pytest.approx(3 / generation.duration_s)


def test_options_travel_and_what_is_left_out_stays_unset(client, router):
    client.generate("demo", "hi", temperature=0, seed=2**63, stop="END", stop_token_ids=[5], cache=False)
    sent = router.requests[0]
    assert sent.HasField("temperature")
    assert sent.temperature == 0
    assert sent.seed == 2**63
    assert list(sent.stop) == ["END"]
    assert list(sent.stop_token_ids) == [5]
    assert sent.cache_no_lookup
    assert sent.cache_no_store
    assert not sent.HasField("max_tokens")
    assert not sent.HasField("top_p")


def test_chat_and_token_ids(client, router):
    client.generate("demo", messages=[{"role": "user", "content": "hi"}])
    client.generate("demo", token_ids=[1, 2, 3])
    assert router.requests[0].chat.messages[0].content == "hi"
    assert list(router.requests[1].tokens.ids) == [1, 2, 3]


def test_stream_knows_route_and_cache_from_the_first_chunk(client):
    stream = client.stream("demo", "hi")
    assert stream.route == ()
    assert next(stream).text == "Hel"
    assert stream.route[1].address == "127.0.0.1:2"
    assert stream.cache == "miss"
    assert [chunk.text for chunk in stream] == ["lo", ""]
    assert stream.generation().text == "Hello"


def test_leaving_a_stream_cancels_it(client, router):
    with client.stream("endless", "hi") as stream:
        next(stream)
    assert router.cancelled.wait(10)


def test_a_stream_that_breaks_raises_after_what_came(client):
    stream = client.stream("breaks", "hi")
    assert next(stream).text == "Hel"
    with pytest.raises(Unavailable, match="replica b1 went away"):
        next(stream)


def test_infer(client, router):
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    outputs = client.infer("demo", {"input_ids": ids}, outputs=["input_ids_x2"])
    np.testing.assert_array_equal(outputs["input_ids_x2"], ids * 2)
    assert outputs["input_ids_x2"].dtype == np.int64
    assert list(router.requests[0].outputs) == ["input_ids_x2"]
    assert client.infer_detailed("demo", {"x": ids}).cache == "bypass"


def test_embed(client):
    vectors = client.embed("demo", ["a", "bcd"])
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 1], [3, 1]]
    assert client.embed("demo", "abc").shape == (1, 2)


def test_models_and_status(client):
    assert [model.spec.name for model in client.models()] == ["demo"]
    assert client.status().replicas[0].record.pid == 4242


def test_errors_are_of_the_tree(client):
    with pytest.raises(NotFound, match="not deployed"):
        client.generate("missing", "hi")
    with pytest.raises(ResourceExhausted) as caught:
        client.embed("busy", "hi")
    assert caught.value.field == "model"
    assert caught.value.retry_after_s == 1.5


def test_deadline(client):
    with pytest.raises(DeadlineExceeded):
        client.generate("endless", "hi", timeout_s=0.3)


def test_metadata_and_deadline_travel(router):
    with Client(router.address, api_key="k", timeout_s=33) as client:
        client.generate("demo", "hi", request_id="mine")
        client.embed("demo", "hi")
    assert router.metadata[0]["authorization"] == "Bearer k"
    assert router.metadata[0]["x-request-id"] == "mine"
    assert len(router.metadata[1]["x-request-id"]) == 32
    assert 25 < router.deadlines[0] <= 33.5


def test_nothing_listens():
    with (
        Client("127.0.0.1:9", timeout_s=10) as client,
        pytest.raises(Unavailable, match=r"^nothing answers at 127\.0\.0\.1:9$"),
    ):
        client.models()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "token_ids": [1]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "a", "max_tokens": 2**40}, "max_tokens"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"token_ids": [-1]}, "token_ids"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
    ],
)
def test_what_cannot_be_sent_names_its_field(client, router, arguments, field):
    with pytest.raises(InvalidArgument) as caught:
        client.generate("demo", **arguments)
    assert caught.value.field == field
    assert router.requests == []


def test_unknown_option(client):
    with pytest.raises(TypeError, match="temprature"):
        client.generate("demo", "hi", temprature=1)


def test_several_answers_are_choices_and_the_first_is_the_generation(client, router):
    generation = client.generate(
        "demo",
        "hi",
        n=2,
        min_tokens=1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={5: -100},
        logprobs=1,
    )
    assert [(c.index, c.text, c.finish_reason) for c in generation.choices] == [
        (0, "Hello", "length"),
        (1, "B", "stop"),
    ]
    assert (generation.text, generation.token_ids, generation.finish_reason) == ("Hello", (7, 8, 9), "length")
    assert generation.choices[1].top_logprobs == ({4: -0.25},)
    assert (generation.usage.prompt_tokens, generation.usage.completion_tokens) == (4, 4)
    sent = router.requests[0]
    assert (sent.n, sent.min_tokens, dict(sent.logit_bias)) == (2, 1, {5: -100})
    assert (sent.presence_penalty, sent.frequency_penalty, sent.repetition_penalty) == (0.5, -0.5, 1.5)


@pytest.mark.parametrize("bias", [{"five": 1}, {5: "x"}, {-1: 1.0}, [5]])
def test_a_bias_of_the_wrong_kind_names_its_field(client, bias):
    with pytest.raises(InvalidArgument) as caught:
        client.generate("demo", "hi", logit_bias=bias)
    assert caught.value.field == "logit_bias"
