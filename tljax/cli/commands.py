"""The commands that train, or say what training would take: the flags of each, what it calls, and what it prints."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from tljax.cli import flags
from tljax.errors import ConfigError


def _train(arguments: list[str]) -> None:
    from tljax import config as settings

    if "--help" in arguments:
        print("usage: tljax train --config=FILE --workdir=DIR [--config.a.b=value …]\n\n" + settings.help_text())
        return
    values = flags.parse("train", arguments, {"workdir": None}, config=True)
    config = flags.validated(values["config"].value)
    flags.quiet()
    from tljax import mesh
    from tljax.run import beside, cluster, devices, processes

    found = cluster.found(os.environ)
    devices.prepare(config, found)
    with processes.Group(found, config.device.stall_s) if found else contextlib.nullcontext() as group:
        results = beside.train_all(config, Path(values["workdir"].value), group=group)
        if not mesh.lead():
            return
    print("\n" + beside.render(results))
    if sentence := beside.verdict(results):
        print(f"\n{sentence}")
    workdir = values["workdir"].value
    print(f"\nmodel    {results[0].model}\nreport   {workdir}/report.html")
    if config.objective == "classes":
        print(f"picture  {workdir}/confusion.png")
    if config.objective in ("classes", "item"):
        print(f"next     tljax predict --workdir={workdir} --input=FILE --output=predictions.csv")
    else:
        print(f"next     fine-tune it: --config.model.ref={workdir}")


def _compare(arguments: list[str]) -> None:
    names = {"workdir": None, "strategies": None, "seeds": "3", "minutes": "0"}
    values = flags.parse("compare", arguments, names, config=True)
    config = flags.validated(values["config"].value)
    seeds = flags.whole(values, "seeds")
    try:
        minutes = float(values["minutes"].value)
    except ValueError:
        raise ConfigError("--minutes", f"{values['minutes'].value!r}", "a number") from None
    _alone("compare")
    from tljax.run import compare, devices

    devices.prepare(config, None)
    path = Path(values["workdir"].value)
    compare.compare(config, path, values["strategies"].value, seeds, minutes)
    print(f"\npicture  {path}/compare.png\nreport   {path}/compare.html")


def _verdict(arguments: list[str]) -> None:
    names = {"workdir": None, "shots": "1,5,10,0", "seeds": "3", "metric": "accuracy"}
    values = flags.parse("verdict", arguments, names, config=True)
    config = flags.validated(values["config"].value)
    few = [number.strip() for number in values["shots"].value.split(",")]
    if not all(number.isdecimal() for number in few):
        raise ConfigError("--shots", f"{values['shots'].value!r}", "whole numbers joined by commas, as 1,5,10,0")
    seeds = flags.whole(values, "seeds")
    _alone("verdict")
    from tljax.run import devices, verdict

    devices.prepare(config, None)
    path = Path(values["workdir"].value)
    verdict.verdict(config, path, [int(number) for number in few], seeds, values["metric"].value)
    if (path / "few_shot.png").is_file():
        print(f"\npicture  {path}/few_shot.png")


def _alone(command: str) -> None:
    """Raises ConfigError where several processes were started; imports JAX."""
    flags.quiet()
    from tljax.run import cluster

    if found := cluster.found(os.environ):
        raise ConfigError(
            f"tljax {command}", f"{found.processes or 'several'} processes", "one, with any number of devices"
        )


def _plan(arguments: list[str]) -> None:
    names: dict[str, str | bool | None] = {"topology": "local", "classes": "0", "largest_batch": False, "json": False}
    values = flags.parse("plan", arguments, names, config=True)
    config = flags.validated(values["config"].value)
    classes = flags.whole(values, "classes")
    flags.quiet()
    if values["topology"].value != "local":
        os.environ["JAX_PLATFORMS"] = "cpu"  # for the little that is computed here
    from tljax.run import devices, inputs, plan

    devices.prepare(config, None)
    # of events the data says what the network is made of
    tables = inputs.read(config) if config.task == "events" or (config.objective == "classes" and not classes) else None
    data = tables.fields if tables else None
    planner = plan.planner(config, values["topology"].value, classes or len(tables.classes if tables else ()), data)
    found = planner.at(config.train.batch_size)
    if values["largest_batch"].value:
        found = planner.largest(found)
    print(json.dumps(plan.as_json(found)) if values["json"].value else plan.render(found))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "compare": _compare,
    "verdict": _verdict,
    "plan": _plan,
}
