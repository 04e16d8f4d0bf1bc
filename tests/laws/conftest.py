"""The laws run over every family and every strategy."""

import pytest
from cases import CONFIGS, STRATEGIES


@pytest.fixture(params=list(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=list(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param
