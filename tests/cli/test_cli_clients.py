"""generate, infer, status against a scripted router on a real socket."""

import json

import numpy as np
import pytest


@pytest.fixture
def ask(stagemesh, router):
    return lambda command, *rest, **more: stagemesh(command, *rest, "--address", router.address, **more)


def test_generate_streams_text_to_stdout_and_the_rest_to_stderr(ask, router):
    result = ask("generate", "hi", "--max-tokens", 3, "--temperature", 0, "--stop", "X", "--stop", "Y")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "Hello\n"
    assert "stage 0 -> a0, stage 1 -> b1" in result.stderr
    assert "tokens/s" in result.stderr
    assert "cache miss" in result.stderr
    sent = router.requests[0]
    assert (sent.model, sent.prompt, sent.max_tokens) == ("demo", "hi", 3)
    assert list(sent.stop) == ["X", "Y"]


def test_generate_as_json(ask):
    result = ask("generate", "hi", "--model", "demo", "--json")
    answer = json.loads(result.stdout)
    assert answer["text"] == "Hello"
    assert answer["cache"] == "miss"
    assert answer["route"][1] == {"stage": 1, "replica_id": "b1", "address": "127.0.0.1:2"}
    assert answer["tokens_per_second"] > 0


def test_generate_reads_stdin_and_chats(ask, router):
    assert ask("generate", "-", "--chat", "--system", "be brief", input="from stdin").exit_code == 0
    roles = [(item.role, item.content) for item in router.requests[0].chat.messages]
    assert roles == [("system", "be brief"), ("user", "from stdin")]


def test_what_is_wanted_of_the_cache_is_said(ask, router, stagemesh):
    assert ask("generate", "hi", "--cache-control", "no-store, ttl=60, namespace=docs").exit_code == 0
    control = router.requests[0].cache_control
    assert (control.no_store, control.ttl_s, control.namespace) == (True, 60, "docs")
    refused = ask("generate", "hi", "--cache-control", "ttl=soon")
    assert refused.exit_code != 0
    assert "ttl must be whole seconds" in refused.stderr
    assert len(router.requests) == 1
    for command in ("generate", "infer"):
        assert "max-age" in stagemesh(command, "--help").stdout


def test_infer_from_npz_writes_npz(ask, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.array([[1.5, 2.5]], np.float32))
    result = ask("infer", tmp_path / "in.npz", "--out", tmp_path / "out.npz")
    assert result.exit_code == 0, result.stderr
    assert "x_x2: float32 [1, 2]" in result.stdout
    assert "cache bypass" in result.stderr
    assert np.load(tmp_path / "out.npz")["x_x2"].tolist() == [[3, 5]]


def test_infer_from_json_as_json(ask, tmp_path):
    (tmp_path / "in.json").write_text('{"ids": [[1, 2]], "mask": [[true, false]], "f": [[0.5]]}')
    result = ask("infer", tmp_path / "in.json", "--json", "--output", "ids_x2")
    outputs = json.loads(result.stdout)["outputs"]
    assert outputs["ids_x2"] == {"dtype": "int64", "shape": [1, 2], "data": [[2, 4]]}
    assert outputs["f_x2"]["dtype"] == "float32"


def test_infer_texts(ask):
    result = ask("infer", "--text", "abc", "--text", "d", "--json")
    assert json.loads(result.stdout)["outputs"]["embeddings"]["data"] == [[3, 1], [1, 1]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"x": [[1], [1, 2]]}', "x: rows of different lengths"),
        ('{"x": ["a"]}', "x: must hold only numbers"),
    ],
)
def test_infer_refuses_a_bad_file_in_one_line(ask, tmp_path, content, said):
    (tmp_path / "in.json").write_text(content)
    result = ask("infer", tmp_path / "in.json")
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_infer_never_unpickles(ask, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.array([{"a": 1}], dtype=object))
    result = ask("infer", tmp_path / "in.npz")
    assert result.exit_code == 1
    assert "plain arrays" in result.stderr


def test_status_as_json_lists_every_replica(ask):
    answer = json.loads(ask("status", "--json").stdout)
    replica = answer["replicas"][0]
    expected = {
        "model": "demo",
        "stage": 0,
        "layers": [0, 4],
        "node": "node-0",
        "pid": 4242,
        "state": "READY",
    }
    assert expected.items() <= replica.items()
    assert replica["address"] == "127.0.0.1:1"
    assert replica["load"]["queue_depth"] == 2
    assert replica["sessions_routed"] == 9
    assert answer["etcd_connected"] is True


def test_status_as_a_table(ask):
    result = ask("status", env={"COLUMNS": "200"})
    assert "node-0" in result.stdout
    assert "0-3" in result.stdout
    assert "READY" in result.stdout
    assert "1 nodes, etcd connected" in result.stdout


@pytest.mark.parametrize(
    "command", [("generate", "hi", "--model", "missing"), ("generate", "hi", "--model", "breaks")]
)
def test_the_routers_errors_are_one_line(ask, command):
    result = ask(*command)
    assert result.exit_code == 1
    assert result.stderr.strip().count("\n") == 0
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("status", "--address", "127.0.0.1:9"),
        ("generate", "x", "--address", "127.0.0.1:9"),
        ("infer", "--text", "x", "--address", "127.0.0.1:9"),
        ("deploy", "some/model", "--registry", "127.0.0.1:9"),
        ("scale", "m", "2", "--registry", "127.0.0.1:9"),
        ("undeploy", "m", "--registry", "127.0.0.1:9"),
    ],
)
def test_nobody_there_is_one_line(stagemesh, command):
    result = stagemesh(*command)
    assert result.exit_code == 1
    assert result.stderr == "stagemesh: nothing answers at 127.0.0.1:9\n"


def test_addresses_come_from_the_environment(stagemesh, router):
    assert stagemesh("status", env={"STAGEMESH_ADDRESS": router.address}).exit_code == 0


def test_generate_several_answers_with_penalties(ask, router):
    done = ask(
        "generate",
        "hi",
        "--n",
        "2",
        "--presence-penalty",
        "0.5",
        "--logit-bias",
        "5=-100",
        "--min-tokens",
        "1",
    )
    assert done.exit_code == 0, done.stderr
    assert "--- 0 (length)\nHello\n--- 1 (stop)\nB\n" in done.stdout
    sent = router.requests[-1]
    assert (sent.n, sent.presence_penalty, dict(sent.logit_bias), sent.min_tokens) == (2, 0.5, {5: -100}, 1)
    bad = ask("generate", "hi", "--logit-bias", "five")
    assert bad.exit_code != 0
    assert "--logit-bias: 'five' is not TOKEN_ID=VALUE" in bad.stderr
