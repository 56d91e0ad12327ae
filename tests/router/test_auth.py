import pytest
from stagemesh.services.router.auth import Auth, load_keys

from stagemesh.errors import ConfigError, Unauthenticated


def test_without_keys_everybody_is_the_default_tenant():
    assert Auth().tenant("") == "default"
    assert Auth().tenant("Bearer whatever") == "default"


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "Bearer k", "Basic k1", "k1", "Bearer ключ"])
def test_a_wrong_credential_is_refused(given):
    with pytest.raises(Unauthenticated) as caught:
        Auth({"k1": "one"}).tenant(given)
    assert caught.value.field == "authorization"
    assert "k1" not in caught.value.message


def test_each_key_has_its_tenant():
    auth = Auth({"k1": "one", "k2": "two"})
    assert (auth.tenant("Bearer k1"), auth.tenant("bearer  k2")) == ("one", "two")


def test_keys_file(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text("k1: one\nk2: two\n")
    assert load_keys(path) == {"k1": "one", "k2": "two"}


@pytest.mark.parametrize("content", ["", "- a\n", "secret-key: 3\n", "a: [", "1: one\n"])
def test_a_bad_keys_file_is_one_clear_line_without_keys(tmp_path, content):
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="api_keys") as caught:
        load_keys(path)
    assert "secret-key" not in caught.value.message
    with pytest.raises(ConfigError, match="cannot read"):
        load_keys(tmp_path / "none.yaml")
