from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What stage nodes of tests measure is not kept among what those of the user did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGEMESH_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield
