"""tljax: transfer learning in JAX. Load a pretrained network, say what trains, train that alone, see if it paid."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tljax.models import Backbone, Output, Stage
    from tljax.models.adapters import Adapter
    from tljax.train.optim import make as make_optimizer
    from tljax.train.optim import schedule as make_schedule
    from tljax.train.state import TrainState
    from tljax.train.state import create as create_state
    from tljax.train.step import make_eval_step, make_train_step
    from tljax.transfer import adapters, freeze
    from tljax.weights.load import Model, load_pretrained

_HOMES = {
    "Adapter": ("tljax.models.adapters", "Adapter"),
    "Backbone": ("tljax.models", "Backbone"),
    "Model": ("tljax.weights.load", "Model"),
    "Output": ("tljax.models", "Output"),
    "Stage": ("tljax.models", "Stage"),
    "TrainState": ("tljax.train.state", "TrainState"),
    "adapters": ("tljax.transfer.adapters", ""),
    "create_state": ("tljax.train.state", "create"),
    "freeze": ("tljax.transfer.freeze", ""),
    "load_pretrained": ("tljax.weights.load", "load_pretrained"),
    "make_eval_step": ("tljax.train.step", "make_eval_step"),
    "make_optimizer": ("tljax.train.optim", "make"),
    "make_schedule": ("tljax.train.optim", "schedule"),
    "make_train_step": ("tljax.train.step", "make_train_step"),
}  # public name -> (module, name there; empty: the module itself); imported on first use, because JAX takes 3 s

__all__ = [
    "Adapter",
    "Backbone",
    "Model",
    "Output",
    "Stage",
    "TrainState",
    "adapters",
    "create_state",
    "freeze",
    "load_pretrained",
    "make_eval_step",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tljax' has no attribute {name!r}")
    import importlib

    module, attribute = _HOMES[name]
    home = importlib.import_module(module)
    return getattr(home, attribute) if attribute else home
