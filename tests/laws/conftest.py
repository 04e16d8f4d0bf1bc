"""The laws run over every family and every strategy."""

import itertools

import pytest
from cases import CONFIGS, OTHERS, STRATEGIES


@pytest.fixture(params=list(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    """A network that gives the class of an example."""
    return request.param


@pytest.fixture(params=[*CONFIGS, *OTHERS])
def row(request: pytest.FixtureRequest) -> str:
    """Those, and the networks of other objectives."""
    return request.param


@pytest.fixture(params=list(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(
    params=[
        *itertools.product(CONFIGS, STRATEGIES),
        *itertools.product(OTHERS, ("feature_extraction", "full", "last_k")),  # what a strategy is, others have shown
    ],
    ids="-".join,
)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A network, as `row`, and a strategy."""
    return request.param
