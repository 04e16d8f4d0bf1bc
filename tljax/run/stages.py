"""The stage before a run: pretraining, or more of it, on data without labels, in a workdir of its own."""

import dataclasses
from pathlib import Path

from tljax import mesh
from tljax.config import AdaptConfig, Config, TransferConfig
from tljax.run.processes import Group
from tljax.run.train import Say, train

FOLDER = "pretrain"
HELD_OUT = 0.02  # of the data, on which the pretraining is scored; all of it would be a pass more


def pretrained(config: Config, path: Path, say: Say = print, group: Group | None = None) -> Config:
    """Runs the stage that `config.pretrain` names, or goes on with it, and gives the config of what comes after: the
    same, from the model that the stage has left. Without such a stage it is the config itself.

    Args:
      path: the workdir of the run; the stage's lies in it.
      say, group: as for `train`.
    """
    if not config.pretrain.data:
        return config
    if mesh.lead():
        say(f"— first: {config.pretrain.objective} on {config.pretrain.data} —")
    train(stage(config), path / FOLDER, say, group=group)
    if mesh.lead():
        say("\n— then —")
    return after(config, path)


def stage(config: Config) -> Config:
    """The settings of the stage."""
    p = config.pretrain
    return dataclasses.replace(
        config,
        objective=p.objective,
        data=dataclasses.replace(config.data, train=p.data, validation="", test="", validation_fraction=HELD_OUT,
                                 per_class=0),
        transfer=TransferConfig(strategy=p.strategy),
        optim=dataclasses.replace(config.optim, learning_rate=p.learning_rate, class_weights="none",
                                  label_smoothing=0.0),
        train=dataclasses.replace(config.train, epochs=p.epochs, batch_size=p.batch_size, patience=0,
                                  best_metric="ndcg_10" if p.objective == "item" else "loss"),
        events=dataclasses.replace(config.events, entities=p.entities, labelled=1.0, negatives=1.0,
                                   recent=0),
        adapt=AdaptConfig(),
        pretrain=dataclasses.replace(p, data=""),
    )  # fmt: skip


def after(config: Config, path: Path) -> Config:
    """The settings of the run that starts from what the stage has left."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, ref=str(path.absolute() / FOLDER)),
                               pretrain=dataclasses.replace(config.pretrain, data=""))  # fmt: skip
