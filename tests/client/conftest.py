import pytest
from scripted_router import running_router


@pytest.fixture
def router():
    with running_router() as servicer:
        yield servicer
