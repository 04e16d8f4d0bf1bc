"""The commands: the flags of each, what it calls in run/, and what it prints."""

import contextlib
import dataclasses
import json
import os
import sys
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
    print(f"\nmodel    {results[0].model}\nreport   {workdir}/report.html\npicture  {workdir}/confusion.png\nnext     "
          f"tljax predict --workdir={workdir} --input=FILE --output=predictions.csv")  # fmt: skip


def _compare(arguments: list[str]) -> None:
    names = {"workdir": None, "strategies": None, "seeds": "3", "minutes": "0"}
    values = flags.parse("compare", arguments, names, config=True)
    config = flags.validated(values["config"].value)
    seeds = flags.whole(values, "seeds")
    try:
        minutes = float(values["minutes"].value)
    except ValueError:
        raise ConfigError("--minutes", f"{values['minutes'].value!r}", "a number") from None
    flags.quiet()
    from tljax.run import cluster, compare, devices

    if found := cluster.found(os.environ):
        raise ConfigError(
            "tljax compare", f"{found.processes or 'several'} processes", "one, with any number of devices"
        )
    devices.prepare(config, None)
    path = Path(values["workdir"].value)
    compare.compare(config, path, values["strategies"].value, seeds, minutes)
    print(f"\npicture  {path}/compare.png\nreport   {path}/compare.html")


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
    planner = plan.planner(config, values["topology"].value, classes or len(inputs.read(config).classes))
    found = planner.at(config.train.batch_size)
    if values["largest_batch"].value:
        found = planner.largest(found)
    print(json.dumps(plan.as_json(found)) if values["json"].value else plan.render(found))


def _eval(arguments: list[str]) -> None:
    values = flags.parse("eval", arguments, {"workdir": None, "data": ""})
    flags.quiet()
    from tljax.evaluate import metrics
    from tljax.run import predict

    scores, source = predict.evaluate(Path(values["workdir"].value), values["data"].value)
    print(metrics.table(scores))
    print(f"\n{source}: accuracy {metrics.shown(scores.accuracy)}, macro-F1 {metrics.shown(scores.macro_f1)}, "
          f"loss {metrics.shown(scores.loss)}, {scores.n:,} examples")  # fmt: skip


def _predict(arguments: list[str]) -> None:
    values = flags.parse("predict", arguments, {"workdir": None, "input": None, "output": None})
    flags.quiet()
    from tljax.run import predict

    count = predict.predict(Path(values["workdir"].value), values["input"].value, Path(values["output"].value))
    print(f"{count:,} predictions in {values['output'].value}")


def _export(arguments: list[str]) -> None:
    values = flags.parse("export", arguments, {"workdir": None, "output": None, "format": "hf"})
    flags.quiet()
    from tljax.run import export

    output = Path(values["output"].value)
    export.export(Path(values["workdir"].value), output, values["format"].value)
    print(f"model in {output}")


def _convert(arguments: list[str]) -> None:
    values = flags.parse("convert", arguments, {"input": None, "output": None, "format": "hf", "revision": ""})
    flags.quiet()
    from tljax.run import convert

    given = {name: values[name].value for name in ("input", "output", "format", "revision")}
    print(convert.convert(given["input"], Path(given["output"]), given["format"], given["revision"]))


def _show(arguments: list[str]) -> None:
    values = flags.parse("show", arguments, {"strategy": "full", "k": "2", "revision": ""}, positional="[REF]")
    k = flags.whole(values, "k")
    flags.quiet()
    from tljax.run import show

    if not values["[REF]"]:
        print(show.families())
        return
    print(show.show(values["[REF]"], values["strategy"].value, k, values["revision"].value))


def _rank(arguments: list[str]) -> None:
    names = {"models": None, "data": None, "task": "", "examples": "2000", "seed": "0"}
    columns = dict.fromkeys(("text_column", "image_column", "label_column"), "")
    given = any(a.startswith("--config") for a in arguments)
    switches = {"stages": False, "json": False}
    values = flags.parse("rank", arguments, {**names, **columns, **switches}, config=given)
    from tljax import config as settings

    own = flags.typed(values["config"].value) if given else settings.Config()
    task = values["task"].value or (own.task if given else "")
    if task not in ("", "text", "image"):
        raise ConfigError("--task", f"{task!r}", "text or image")
    refs = [ref.strip() for ref in values["models"].value.split(",") if ref.strip()]
    named = {name: values[name].value for name in columns if values[name].value}
    data = dataclasses.replace(own.data, train=values["data"].value, validation="", test="", **named)
    model = dataclasses.replace(own.model, ref=values["models"].value)
    # What else a config file says is for training, and may not be at odds with another file of data.
    config = settings.Config(task=task or "text", seed=flags.whole(values, "seed"), model=model, data=data,
                             train=settings.TrainConfig(eval_batch_size=own.train.eval_batch_size),
                             device=own.device)  # fmt: skip
    settings.validate(config)
    examples = flags.whole(values, "examples")
    flags.quiet()
    from tljax.evaluate import transferability
    from tljax.run import devices, rank

    devices.prepare(config, None)
    found = rank.rank(refs, config, task, values["stages"].value, examples, lambda text: print(text, file=sys.stderr))
    if values["json"].value:
        for row in transferability.as_json(found.entries):
            print(json.dumps(row, ensure_ascii=False))
        return
    print(f"{found.heading}\n\n{transferability.render(found.entries)}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "compare": _compare,
    "plan": _plan,
    "rank": _rank,
    "eval": _eval,
    "predict": _predict,
    "export": _export,
    "convert": _convert,
    "show": _show,
}
