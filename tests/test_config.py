"""Settings: every check, every contradiction, the nearest name, and the way to JSON and back."""

import dataclasses
import json
import math
import random
import typing

import pytest

from tljax import config
from tljax.config import Config, from_dict, nearest, settings, to_dict, validate
from tljax.errors import ConfigError
from tljax.models.adapters import KINDS
from tljax.transfer import freeze, phases

ALL = {name: (field, value) for name, field, value in settings(Config())}


def good(**changes: object) -> Config:
    """A config that passes, with `changes` by name: good(optim__k=1)."""
    made = Config()
    made.model.ref, made.data.train = "some/model", "train.csv"
    for name, value in changes.items():
        *parents, leaf = name.split("__")
        node = made
        for parent in parents:
            node = getattr(node, parent)
        setattr(node, leaf, value)
    return made


def problems(made: Config) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        validate(made)
    return caught.value.details


def test_the_defaults_pass_once_there_is_a_model_and_data():
    made = good()
    assert validate(made) is made
    assert problems(Config()) == (
        "--config.model.ref: empty, expected a Hugging Face id, a folder, pypi:<package> or a finished workdir",
        "--config.data.train: empty, expected the file or folder to train on",
    )


@pytest.mark.parametrize("name", ALL)
def test_every_setting_has_help_and_a_check(name):
    field, value = ALL[name]
    assert len(field.metadata["help"]) > 3
    assert isinstance(value, typing.get_origin(field.type) or field.type)
    free = field.type in (bool, str) or typing.get_origin(field.type) is tuple
    assert free or field.metadata["check"] is not None, f"{name} is a number without bounds"
    assert field.metadata["check"] is None or field.metadata["check"](value) == ""
    assert f"--{name}={value!r}" in config.help_text()


SHARES = ((0.5, 0.5), (0.6, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.0,), (0.0, 0.5, 1.0), ("0", "1"), (0.0, math.nan))
COMPANY = {"adapt__method": {"adapt__target": "other.csv"}}  # settings that go with others
LOW_AND_HIGH = [
    # setting, values that pass, values that do not
    ("model__pooling", ("auto", "pooler", "mean"), ("max", "")),
    ("model__image_size", (0, 224, 4096), (-1, 4097)),
    ("model__vocab_size", (0, 40_000, 4_194_304), (-1, 4_194_305)),
    ("model__dropout", (-1, -1.0, 0.0, 0.99), (-1.1, -0.5, 1.0, 10**400)),
    ("model__dtype", ("float32", "bfloat16"), ("float16", "f32")),
    ("data__validation_fraction", (0, 0.9), (-0.1, 0.91)),
    ("data__on_bad", ("stop", "skip"), ("ignore",)),
    ("data__max_length", (4, 65536), (3, 65537)),
    ("data__max_buckets", (1, 64), (0, 65)),
    ("data__resize", ("squash", "crop"), ("pad",)),
    ("data__crop_area", (1e-9, 1), (0, 1.1)),
    ("data__threads", (1, 256), (0, 257)),
    ("transfer__strategy", ("full", "bitfit", "scratch"), ("head", "")),
    ("transfer__k", (1, 1000), (0, 1001)),
    ("transfer__layer_decay", (0.1, 1), (0, 1.01)),
    ("transfer__head_factor", (1e-3, 1e4), (0, 10001)),
    ("transfer__l2sp", (0, 1), (-1e-9, 1.1)),
    ("transfer__rules", ((),), (((".*",),), (".*",), ((".*", 1),))),
    ("optim__name", ("adamw", "sgd", "lion", "adafactor"), ("adam",)),
    ("optim__learning_rate", (1e-9, 100), (0, -1, 101)),
    ("optim__schedule", ("linear", "cosine", "constant"), ("step",)),
    ("optim__warmup_fraction", (0, 1), (-0.1, 1.1)),
    ("optim__weight_decay", (0, 1), (-0.1, 1.1)),
    ("optim__beta1", (0, 0.9999), (-0.1, 1.0)),
    ("optim__beta2", (0, 0.99999), (-0.1, 1.0)),
    ("optim__clip_norm", (0, 1e9), (-1, 10**400)),
    ("optim__ema", (0, 0.99999), (-0.1, 1)),
    ("optim__label_smoothing", (0, 0.9), (-0.1, 0.91)),
    ("optim__class_weights", ("none", "balanced"), ("sqrt",)),
    ("optim__accumulate", (1, 32), (0, 4097)),
    ("train__batch_size", (1, 65536), (0, 65537)),
    ("train__eval_batch_size", (1, 65536), (0, 65537)),
    ("train__epochs", (1, 100000), (0, 100001)),
    ("train__log_every_steps", (1, 10**9), (0, -1)),
    ("train__save_every_steps", (1, 10**9), (0,)),
    ("train__keep", (2, 1000), (1, 1001)),
    ("train__patience", (0, 10**6), (-1,)),
    ("transfer__head_epochs", (1, 100000), (0, 100001)),
    ("data__split_seed", (-1, 0, 2**31 - 1), (-2, 2**31)),
    ("adapter__rank", (1, 65536), (0, 65537)),
    ("adapter__alpha", (0.5, 1e6), (0.0, 2e6)),
    ("adapter__layers", (0, 1000), (-1, 1001)),
    ("adapter__tokens", (1, 4096), (0, 4097)),
    ("adapter__factor", (0.1, 1e4), (0.0, 2e4)),
    ("model__frozen", ("same", "int8"), ("int4", "")),
    ("transfer__looks", (1, 1000), (0, 1001)),
    ("transfer__settled", (0.0, 1.0), (-0.1, 1.1)),
    ("cache__mode", ("auto", "memory", "disk", "off"), ("ram", "")),
    ("cache__limit_gb", (0.001, 1e6), (0.0, -1.0)),
    ("cache__dtype", ("same", "float32", "bfloat16"), ("float16",)),
    ("cache__views", (0, 1000), (-1, 1001)),
    ("parallel", ("data", "fsdp", "pmap"), ("ddp", "")),
    ("device__count", (0, 1, 65536), (-1, 65537)),
    ("device__platform", ("any", "cpu", "gpu", "tpu"), ("cuda", "")),
    ("device__stall_s", (0, 0.5, 1e9), (-1.0,)),
    ("device__compile_cache_gb", (0, 0.001, 1e6), (-1.0,)),
    (
        "train__best_metric",
        ("accuracy", "macro_f1", "loss", "roc_auc", "average_precision", "ndcg_10", "hit_rate_10"),
        ("f1", "mrr", ""),
    ),
    ("task", ("text", "image", "events"), ("audio", "event")),
    ("objective", ("classes", "masked", "next", "item"), ("words", "")),
    ("data__per_class", (0, 1, 10**9), (-1,)),
    (
        "events__fields",
        ((), (("shop", "category"),), (["a", "number"], ("b", "delta"), ("c", "hour"), ("d", "weekday"))),
        ((("shop", "text"),), (("shop",),), ((1, "number"),), ("shop",)),
    ),
    (
        "events__derived",
        ((), (("n", "count", "", "card", 1, 0),), (["r", "mean", "fraud", "card", 0.5, 7.0],)),
        (
            (("n", "max", "", "card", 1, 0),),
            (("n", "count", "", "card", 1),),
            (("n", "count", "", "card", 0, 0),),
            (("n", "count", "", "card", 1, -1),),
            (("n", "count", "", "card", "1", 0),),
            (("n", "count", 3, "card", 1, 0),),
            (("n", "sum", "x", "card", math.nan, 0),),
            (("n", "sum", "x", "card", 1, math.nan),),
        ),
    ),
    ("events__answers", ("each", "last"), ("next", "item", "")),
    ("events__bins", (2, 4096), (1, 4097)),
    ("events__least", (1, 10**9), (0,)),
    ("events__context", (0, 65536), (-1, 65537)),
    ("events__delay_days", (0, 0.5, 36500), (-0.5, 36501)),
    ("events__entities", ((0.0, 1.0), (0, 0.1), (0.5, 1)), SHARES),
    ("events__labelled", (1e-9, 1), (0, 1.1)),
    ("events__negatives", (1e-9, 1), (0, 1.1)),
    ("events__recent", (0, 10**9), (-1,)),
    ("pretrain__objective", ("masked", "next", "item"), ("classes", "")),
    ("pretrain__strategy", ("full", "embeddings_frozen", "scratch"), ("lora", "")),
    ("pretrain__epochs", (1, 100000), (0, 100001)),
    ("pretrain__batch_size", (1, 65536), (0, 65537)),
    ("pretrain__learning_rate", (1e-9, 100), (0, 101)),
    ("pretrain__masked", (1e-9, 0.9), (0, 0.91)),
    ("pretrain__entities", ((0.0, 1.0), (0.25, 0.75)), SHARES),
    ("adapt__method", ("coral", "mmd", "dann", "cdan", "adda"), ("mdd", "")),
    ("adapt__weight", (0, 1e4), (-0.1, 10001)),
    ("adapt__width", (1, 65536), (0, 65537)),
    ("adapt__discriminator_factor", (1e-9, 1e4), (0, 10001)),
    ("seed", (0, 2**31 - 1), (-1, 2**31)),
]


@pytest.mark.parametrize(("name", "passing", "failing"), LOW_AND_HIGH, ids=[row[0] for row in LOW_AND_HIGH])
def test_bounds(name, passing, failing):
    for value in passing:
        validate(good(**{name: value}, **COMPANY.get(name, {})))
    for value in failing:
        (found,) = problems(good(**{name: value}))
        flag = name.replace("__", ".")
        assert found.startswith(f"--config.{flag}: found {value!r}, expected ")


def test_every_check_is_in_the_table():
    checked = {name for name, (field, _) in ALL.items() if field.metadata["check"]}
    assert checked == {"config." + row[0].replace("__", ".") for row in LOW_AND_HIGH}


@pytest.mark.parametrize("name", [n for n, (field, _) in ALL.items() if field.type is float])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_infinite(name, value):
    assert len(problems(good(**{name.removeprefix("config.").replace(".", "__"): value}))) == 1


WRONG_TYPES = [
    ("train__epochs", 3.0, "--config.train.epochs: found 3.0 (float), expected int"),
    ("train__epochs", True, "--config.train.epochs: found True (bool), expected int"),
    ("train__epochs", "3", "--config.train.epochs: found '3' (str), expected int"),
    ("optim__learning_rate", True, "--config.optim.learning_rate: found True (bool), expected float"),
    ("optim__learning_rate", "1e-4", "--config.optim.learning_rate: found '1e-4' (str), expected float"),
    ("data__flip", 1, "--config.data.flip: found 1 (int), expected bool"),
    ("model__ref", None, "--config.model.ref: found None (NoneType), expected str"),
    ("task", 0, "--config.task: found 0 (int), expected str"),
]


@pytest.mark.parametrize(("name", "value", "text"), WRONG_TYPES)
def test_types(name, value, text):
    assert problems(good(**{name: value})) == (text,)


def test_a_whole_number_is_a_rate_too():
    validate(good(optim__learning_rate=1, transfer__head_factor=10))


def test_all_problems_at_once_in_order_of_definition():
    made = good(seed=-1, optim__name="adm", train__epochs=0)
    assert [p.split(":")[0] for p in problems(made)] == [
        "--config.seed",
        "--config.optim.name",
        "--config.train.epochs",
    ]
    with pytest.raises(ConfigError, match=r"3 setting\(s\) do not pass"):
        validate(made)


def test_a_choice_names_the_nearest():
    (found,) = problems(good(optim__name="adamW"))
    assert found.endswith("(did you mean 'adamw'?) one of adamw, sgd, lion, adafactor")


CONTRADICTIONS = [
    (
        "patience without validation",
        {"train__patience": 1, "data__validation_fraction": 0.0},
        "--config.train.patience",
    ),
    ("surgical without stages", {"transfer__strategy": "surgical"}, "--config.transfer.stages"),
    ("stages without surgical", {"transfer__stages": "layer_1"}, "--config.transfer.stages"),
    (
        "a decay beside fine_tune's own",
        {"transfer__strategy": "fine_tune", "transfer__layer_decay": 0.5},
        "--config.transfer.layer_decay",
    ),
    ("custom without rules", {"transfer__strategy": "custom"}, "--config.transfer.rules"),
    ("rules without custom", {"transfer__rules": ((".*", "body"),)}, "--config.transfer.rules"),
    ("l2sp from scratch", {"transfer__strategy": "scratch", "transfer__l2sp": 0.1}, "--config.transfer.l2sp"),
    ("micro-batches", {"train__batch_size": 32, "optim__accumulate": 3}, "--config.optim.accumulate"),
    ("tests on train", {"data__test": "train.csv"}, "--config.data.test"),
    ("a target without a method", {"adapt__target": "other.csv"}, "--config.adapt.target"),
    ("a method without a target", {"adapt__method": "dann"}, "--config.adapt.target"),
]


@pytest.mark.parametrize(("changes", "flag"), [r[1:] for r in CONTRADICTIONS], ids=[r[0] for r in CONTRADICTIONS])
def test_contradictions(changes, flag):
    (found,) = problems(good(**changes))
    assert found.startswith(f"{flag}: ")


AT_ODDS_AND_WELL = [
    {"transfer__strategy": "custom", "transfer__rules": ((".*", "body"),)},
    {"transfer__strategy": "full", "transfer__l2sp": 0.1},
    {"train__batch_size": 32, "optim__accumulate": 4},
    {"data__test": "test.csv"},
    {"adapt__target": "other.csv", "adapt__method": "dann"},
]


@pytest.mark.parametrize("changes", AT_ODDS_AND_WELL)
def test_no_contradiction(changes):
    validate(good(**changes))


NEAREST = [
    ("optim.learning_rat", "--config.optim.learning_rate"),
    ("learning_rate", "--config.optim.learning_rate"),
    ("train.learning_rate", "--config.optim.learning_rate"),
    ("model.dropuot", "--config.model.dropout"),
    ("epochs", "--config.train.epochs"),
    ("sed", "--config.seed"),
    ("transfer.k", "--config.transfer.k"),
]


@pytest.mark.parametrize(("unknown", "expected"), NEAREST)
def test_nearest(unknown, expected):
    assert expected in nearest(unknown).split(", ")


def test_nearest_of_nothing_like_it():
    assert nearest("zzzzzzzz.qqqqqqqq") == "see tljax train --help"


def test_to_json_and_back():
    rng = random.Random(0)
    for _ in range(20):
        made = Config()
        for name, field, value in settings(made):
            node, path = made, name.removeprefix("config.").split(".")
            for parent in path[:-1]:
                node = getattr(node, parent)
            drawn = {
                bool: rng.random() < 0.5,
                int: rng.randint(-5, 5),
                float: rng.uniform(-1, 1),
                str: f"é\n{rng.random()}",
            }
            setattr(node, path[-1], drawn.get(field.type, (("a/.*", "frozen"), (".*", "head"))[: rng.randint(0, 2)]))
            assert value is not None
        again = from_dict(json.loads(json.dumps(to_dict(made))))
        assert again == made
        assert isinstance(again.transfer.rules, tuple)


def test_settings_that_are_left_out_have_their_defaults():
    assert from_dict({}) == Config()
    assert from_dict({"optim": {"name": "sgd"}}).optim == dataclasses.replace(Config().optim, name="sgd")


@pytest.mark.parametrize(("values", "where"), [
    ({"sed": 1}, "config.json, sed"), ({"optim": {"lr": 1}}, "config.json, optim.lr"),
])  # fmt: skip
def test_a_name_of_another_version_is_refused(values, where):
    with pytest.raises(ConfigError, match="another version of tljax") as caught:
        from_dict(values)
    assert caught.value.where == where


def test_the_strategies_are_those_that_there_are():
    assert set(config.PARTS) == {*freeze.STRATEGIES, "surgical", "custom"}
    assert set(config.PHASED) == set(phases.RECIPES)
    assert tuple(KINDS) == config.ADAPTERS
