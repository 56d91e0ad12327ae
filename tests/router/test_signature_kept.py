"""Signatures are made once for each spec that is deployed, and anew for the next one of that name."""

from stagemesh.services.router.signature import signature_of

from stagemesh.v1.registry_pb2 import ModelSpec


def test_a_deployed_spec_is_read_once():
    spec = ModelSpec(name="kept", task="embed", hidden_size=8)
    assert signature_of(spec) is signature_of(spec)


def test_a_new_spec_of_the_same_name_has_its_own_signature():
    old = ModelSpec(name="kept", task="embed", hidden_size=8)
    new = ModelSpec(name="kept", task="generate", vocab_size=5)
    assert "sentence_embedding" in signature_of(old).gives
    assert list(signature_of(new).gives) == ["logits"]
    assert "sentence_embedding" in signature_of(old).gives
