"""The recipes in phases: what trains in each of them, for how long, at what rate; since when; and what lies still."""

import pytest
from cases import CONFIGS

from tljax import models
from tljax.config import TransferConfig
from tljax.errors import ConfigError
from tljax.transfer import freeze, phases
from tljax.transfer.freeze import FreezePlan
from tljax.transfer.phases import OneCycle, Phase


class Known:
    """What freezing asks of a network of three layers, traced once and not for every plan."""

    def __init__(self, config):
        network = models.build(config, num_labels=5)
        self.stage_names, self.stage_of, self._shapes = network.stage_names, network.stage_of, network.shapes()

    def shapes(self):
        return self._shapes


FAMILIES = {family: Known(config) for family, config in CONFIGS.items()}
HEAD, ALL = ("feature_extraction", 0), ("full", 0)


def last(k):
    return "last_k", k


# strategy, settings, epochs -> (what trains, epochs) of each phase
RECIPES = [
    ("gradual", {"k": 1}, 1, [(HEAD, 1)]),
    ("gradual", {"k": 1}, 2, [(HEAD, 1), (last(1), 1)]),
    ("gradual", {"k": 1}, 4, [(HEAD, 1), (last(1), 1), (last(2), 1), (last(3), 1)]),
    ("gradual", {"k": 1}, 5, [(HEAD, 1), (last(1), 1), (last(2), 1), (last(3), 1), (ALL, 1)]),
    ("gradual", {"k": 1}, 9, [(HEAD, 1), (last(1), 1), (last(2), 1), (last(3), 1), (ALL, 5)]),
    ("gradual", {"k": 2}, 2, [(HEAD, 1), (last(2), 1)]),
    ("gradual", {"k": 2}, 6, [(HEAD, 1), (last(2), 1), (last(3), 1), (ALL, 3)]),
    ("gradual", {"k": 3}, 3, [(HEAD, 1), (last(3), 1), (ALL, 1)]),
    ("gradual", {"k": 99}, 3, [(HEAD, 1), (last(3), 1), (ALL, 1)]),
    ("lp_ft", {}, 2, [(HEAD, 1), (ALL, 1)]),
    ("lp_ft", {"head_epochs": 3}, 10, [(HEAD, 3), (ALL, 7)]),
    ("fine_tune", {}, 2, [(HEAD, 1), (ALL, 1)]),
    ("fine_tune", {"head_epochs": 4}, 5, [(HEAD, 4), (ALL, 1)]),
    ("adaptive", {}, 4, [(ALL, 4)]),
    ("full", {}, 3, [(ALL, 3)]),
    ("last_k", {"k": 2}, 3, [(last(2), 3)]),
]
RATES = {"gradual": ["whole"] * 9, "lp_ft": ["own", "own"],
         "fine_tune": [OneCycle(0.99, 25.0), OneCycle(0.3, 5.0, 0.5)],
         "adaptive": ["whole"], "full": ["whole"], "last_k": ["whole"]}  # fmt: skip


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize(("strategy", "settings", "epochs", "expected"), RECIPES)
def test_recipes(family, strategy, settings, epochs, expected):
    network, transfer = FAMILIES[family], TransferConfig(strategy=strategy, head_factor=3.0, **settings)
    made = phases.of(network, transfer, epochs)
    assert [phase.epochs for phase in made] == [n for _, n in expected]
    assert sum(phase.epochs for phase in made) == epochs
    assert [phase.rate for phase in made] == RATES[strategy][: len(made)]
    for phase, ((name, k), _) in zip(made, expected, strict=True):
        want = freeze.plan(network, name, k=k or 2, head_factor=3.0)
        assert {p for p in want.labels if phase.plan.trains(p)} == {p for p in want.labels if want.trains(p)}
        assert phase.plan.lowest == want.lowest
        assert phase.plan.factors["head"] == 3.0


def test_every_recipe_is_in_the_table():
    assert set(phases.RECIPES) <= {row[0] for row in RECIPES}


@pytest.mark.parametrize("strategy", phases.HEAD_FIRST)
@pytest.mark.parametrize(("head_epochs", "epochs"), [(1, 1), (3, 3), (4, 3)])
def test_an_epoch_has_to_be_left_for_the_second_phase(strategy, head_epochs, epochs):
    transfer = TransferConfig(strategy=strategy, head_epochs=head_epochs)
    with pytest.raises(ConfigError) as caught:
        phases.of(FAMILIES["bert"], transfer, epochs)
    assert caught.value.where == "--config.transfer.head_epochs"
    assert f"less than --config.train.epochs={epochs}" in str(caught.value)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_fine_tune_goes_from_a_hundredth_below_to_the_whole_rate_above(family):
    """Of the body: the lowest stage at 1/100, equal ratios between, and 1 above the layers."""
    network = FAMILIES[family]
    head, whole = (phase.plan for phase in phases.of(network, TransferConfig(strategy="fine_tune"), 4))
    rates = {network.stage_of(p): whole.factors[label] for p, label in whole.labels.items()}
    assert head.factors == {"head": 1.0}
    found = [rates[name] for name in ("embeddings", "layer_0", "layer_1", "layer_2", "head")]
    assert found == pytest.approx([100 ** (-n / 4) for n in (4, 3, 2, 1, 0)])


def test_a_layer_decay_reaches_the_phases_of_lp_ft():
    made = phases.of(FAMILIES["bert"], TransferConfig(strategy="lp_ft", layer_decay=0.5), 4)
    assert made[1].plan.factors["layer_2"] == 0.5


def plan(**labels) -> FreezePlan:
    return FreezePlan(labels, {"body": 1.0, "head": 1.0}, 0)


PLANS = [plan(a="frozen", b="body", c="head", d="moving"), plan(a="body", b="frozen", c="head", d="body"),
         plan(a="body", b="body", c="head", d="frozen")]  # fmt: skip


@pytest.mark.parametrize(("index", "expected"), [
    (0, {"b": 0, "c": 0}), (1, {"a": 1, "c": 0, "d": 1}), (2, {"a": 1, "b": 2, "c": 0}),  # b: frozen in between
])  # fmt: skip
def test_since_which_phase_a_path_trains(index, expected):
    assert phases.since(PLANS, index) == expected


@pytest.mark.parametrize(("lowest", "index", "now", "expected"), [
    ([5, 4, 3], 2, 0, True), ([5, 4, 3], 1, 0, True), ([3, 4, 5], 2, 0, False), ([3, 4, 5], 2, 1, False),
    ([3, 4, 5], 2, 2, True), ([3, 5, 4], 2, 1, True), ([3, 5, 4], 2, 0, False), ([4, 4, 4], 2, 0, True),
])  # fmt: skip
def test_what_is_below_a_later_phase_lies_still(lowest, index, now, expected):
    assert phases.untouched([FreezePlan({}, {}, n) for n in lowest], index, now) == expected


def test_phases_as_text():
    network = FAMILIES["bert"]
    made = phases.of(network, TransferConfig(strategy="gradual", k=2), 6)
    assert phases.render(made, network.stage_names) == (
        "phase 1, epoch 1: head and above train\n"
        "phase 2, epoch 2: layer_1 and above train\n"
        "phase 3, epoch 3: layer_0 and above train\n"
        "phase 4, epochs 4 to 6: embeddings and above train"
    )
    assert phases.render([Phase(made[0].plan, 3)], network.stage_names) == ""
