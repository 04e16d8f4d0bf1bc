"""What runs on the same data share: the records, the examples, and the activations of frozen stages."""

import dataclasses
from typing import Any

from tljax.config import Config
from tljax.run import inputs
from tljax.run.activations import Chosen
from tljax.weights.load import Model


@dataclasses.dataclass
class Together:
    """Shared by the runs that are given the same one; read once, for as long as it lives.

    Attributes:
      chosen: the activations that are kept; None: each run decides for itself.
    """

    chosen: Chosen | None = None
    _tables: dict[str, inputs.Tables] = dataclasses.field(default_factory=dict)
    _examples: dict[str, dict[str, inputs.Examples]] = dataclasses.field(default_factory=dict)

    def tables(self, config: Config) -> inputs.Tables:
        """The records of a config."""
        key = _data(config)
        if key not in self._tables:
            self._tables[key] = inputs.read(config)
        return self._tables[key]

    def examples(self, config: Config, model: Model) -> dict[str, inputs.Examples]:
        """split -> examples, as a model takes them."""
        key = _data(config) + repr(dataclasses.replace(config.model, frozen="", dtype=""))
        if key not in self._examples:
            tables = self.tables(config)
            self._examples[key] = {name: inputs.make_examples(records, model, config, tables.classes, name == "train")
                                   for name, records in tables.splits().items()}  # fmt: skip
        return self._examples[key]


def _data(config: Config) -> str:
    """What the records and examples of a config depend on."""
    split: Any = config.data.split_seed if config.data.split_seed >= 0 else config.seed
    shares = config.events.labelled, config.events.negatives
    drawn = config.seed if config.data.per_class or min(shares) < 1 else None  # by each run's own seed
    return repr(
        (config.task, config.objective, config.data, config.events, config.pretrain, config.adapt, split, drawn)
    )
