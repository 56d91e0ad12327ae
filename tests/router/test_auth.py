import pytest
from stagemesh.services.router.admission.priority import Priority
from stagemesh.services.router.auth import Auth, Credential, load_keys

from stagemesh.errors import ConfigError, Unauthenticated


def test_without_keys_everybody_is_the_default_tenant():
    assert Auth().credential("").tenant == "default"
    assert Auth().credential("Bearer whatever").tenant == "default"


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "Bearer k", "Basic k1", "k1", "Bearer ключ"])
def test_a_wrong_credential_is_refused(given):
    with pytest.raises(Unauthenticated) as caught:
        Auth({"k1": Credential("one")}).credential(given)
    assert caught.value.field == "authorization"
    assert "k1" not in caught.value.message


def test_each_key_has_its_tenant():
    one, two = Credential("one"), Credential("two", Priority.LOW)
    auth = Auth({"k1": one, "k2": two})
    assert (auth.credential("Bearer k1"), auth.credential("bearer  k2")) == (one, two)


def test_keys_file(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text("k1: one\nk2: {tenant: two}\nk3: {tenant: two, max_priority: low}\n")
    assert load_keys(path) == {
        "k1": Credential("one"),
        "k2": Credential("two", Priority.HIGH),
        "k3": Credential("two", Priority.LOW),
    }


@pytest.mark.parametrize(
    "content",
    [
        "",
        "- a\n",
        "secret-key: 3\n",
        "a: [",
        "1: one\n",
        "secret-key: {}\n",
        "secret-key: {tenant: ''}\n",
        "secret-key: {tenant: one, max_priority: highest}\n",
        "secret-key: {tenant: one, priority: low}\n",
    ],
)
def test_a_bad_keys_file_is_one_clear_line_without_keys(tmp_path, content):
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match="api_keys") as caught:
        load_keys(path)
    assert "secret-key" not in caught.value.message
    with pytest.raises(ConfigError, match="cannot read"):
        load_keys(tmp_path / "none.yaml")
