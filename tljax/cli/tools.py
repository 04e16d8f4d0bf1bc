"""The commands for what is there, checkpoints and finished models: the flags of each, what it calls, what it prints."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tljax.cli import flags
from tljax.errors import ConfigError


def _eval(arguments: list[str]) -> None:
    values = flags.parse("eval", arguments, {"workdir": None, "data": ""})
    flags.quiet()
    from tljax.evaluate import metrics
    from tljax.run import predict, sequences, tasks, workdir

    path = Path(values["workdir"].value)
    _, config = workdir.read_config(path)
    if sequences.needed(config):
        found, source = sequences.evaluate(path, config, values["data"].value)
        print(f"{source}: {tasks.shown(found)}, {found.n:,} answers")
        return
    scores, source = predict.evaluate(path, values["data"].value)
    print(metrics.table(scores))
    print(f"\n{source}: accuracy {metrics.shown(scores.accuracy)}, macro-F1 {metrics.shown(scores.macro_f1)}, "
          f"loss {metrics.shown(scores.loss)}, calibration error {metrics.shown(scores.more['calibration_error'])}, "
          f"{scores.n:,} examples")  # fmt: skip


def _predict(arguments: list[str]) -> None:
    names = {"workdir": None, "input": None, "output": None, "label_shift": "", "labelled": ""}
    values = flags.parse("predict", arguments, names)
    flags.quiet()
    from tljax.run import predict, sequences, workdir

    path, source, output = (Path(values["workdir"].value), values["input"].value, Path(values["output"].value))
    _, config = workdir.read_config(path)
    if sequences.needed(config):
        if shift := values["label_shift"].value:
            raise ConfigError("--label_shift", f"{shift!r} with a model that is no classifier of texts or images")
        count = sequences.predict(path, config, source, output)
    else:
        count = predict.predict(path, source, output, label_shift=values["label_shift"].value,
                                labelled=values["labelled"].value)  # fmt: skip
    print(f"{count:,} predictions in {values['output'].value}")


def _calibrate(arguments: list[str]) -> None:
    values = flags.parse("calibrate", arguments, {"workdir": None, "labelled": "", "method": "temperature"})
    flags.quiet()
    from tljax.run import calibrate

    calibrate.calibrate(Path(values["workdir"].value), values["labelled"].value, values["method"].value)


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
    names = {"strategy": "full", "k": "2", "revision": "", "source": "", "target": "", "text_column": "",
             "image_column": ""}  # fmt: skip
    values = flags.parse("show", arguments, names, positional="[REF]")
    k, ref, revision = flags.whole(values, "k"), values["[REF]"], values["revision"].value
    source, target = (values[name].value for name in ("source", "target"))
    both = bool(source and target)
    if (source or target) and not (both and ref):
        lacks = "no checkpoint" if both else "one of --source and --target alone"
        raise ConfigError("tljax show", lacks, "tljax show --source=FILE --target=FILE REF")
    columns = {name: values[name].value for name in ("text_column", "image_column") if values[name].value}
    flags.quiet()
    from tljax import config as settings
    from tljax.run import apart, devices, show

    if not ref:
        print(show.families())
        return
    if both:
        devices.prepare(settings.Config(), None)
    print(show.show(ref, values["strategy"].value, k, revision))
    if both:
        print(f"\n{apart.apart(ref, source, target, settings.DataConfig(**columns), revision, say=_aside)}")


def _wiseft(arguments: list[str]) -> None:
    names = {"workdir": None, "data": "", "shifted": "", "points": "11", "output": ""}
    values = flags.parse("wiseft", arguments, names)
    points = flags.whole(values, "points")
    flags.quiet()
    from tljax.run import wiseft

    path, output = Path(values["workdir"].value), _folder(values)
    wiseft.wiseft(path, values["data"].value, values["shifted"].value, points, output)
    print(f"\npicture  {path}/wiseft.png" + (f"\nmodel    {output}/model" if output else ""))


def _soup(arguments: list[str]) -> None:
    values = flags.parse("soup", arguments, {"workdir": None, "strategy": None, "output": ""})
    flags.quiet()
    from tljax.run import soup

    output = _folder(values)
    soup.soup(Path(values["workdir"].value), values["strategy"].value, output)
    if output:
        print(f"\nmodel    {output}/model")


def _adapt(arguments: list[str]) -> None:
    values = flags.parse("adapt", arguments, {"workdir": None, "target": None, "output": None, "method": None})
    flags.quiet()
    from tljax.run import testtime

    output = Path(values["output"].value)
    testtime.adapt(Path(values["workdir"].value), values["target"].value, output, values["method"].value)


def _folder(values: Mapping[str, Any]) -> Path | None:
    return Path(values["output"].value) if values["output"].value else None


def _aside(text: str) -> None:
    print(text, file=sys.stderr)


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
    found = rank.rank(refs, config, task, values["stages"].value, examples, _aside)
    if values["json"].value:
        for row in transferability.as_json(found.entries):
            print(json.dumps(row, ensure_ascii=False))
        return
    print(f"{found.heading}\n\n{transferability.render(found.entries)}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "rank": _rank,
    "eval": _eval,
    "predict": _predict,
    "calibrate": _calibrate,
    "adapt": _adapt,
    "wiseft": _wiseft,
    "soup": _soup,
    "export": _export,
    "convert": _convert,
    "show": _show,
}
