"""The command line: tljax train | compare | plan | eval | predict | export | convert | show."""

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tljax.errors import ConfigError, TljaxError, printable

if TYPE_CHECKING:
    from absl import flags

    from tljax.config import Config

USAGE = """\
usage: tljax COMMAND [--flag=value …]

  train    --config=FILE --workdir=DIR [--config.a.b=value …]
                                          train, evaluate, export; the same command again goes on
  eval     --workdir=DIR [--data=FILE]    score the model on its test set, or on another file
  predict  --workdir=DIR --input=FILE --output=FILE.csv
                                          label, probability and runner-up of each input
  export   --workdir=DIR --output=DIR [--format=hf|flax_msgpack|peft|stablehlo]
  convert  --input=REF --output=DIR [--format=hf|flax_msgpack]
                                          a checkpoint of another kind as a Hugging Face folder
  compare  --config=FILE --workdir=DIR --strategies=head,last_2,full [--seeds=3] [--minutes=0] [--config.a.b=value …]
                                          strategies side by side: scores, time, memory, and which to take
  plan     --config=FILE [--topology=v5e:4x4] [--classes=N] [--largest_batch] [--json] [--config.a.b=value …]
                                          memory, FLOPs and traffic of a step, compiled for devices here or elsewhere
  show     [REF] [--strategy=NAME] [--k=N]
                                          family, parameters by stage, freeze table of a checkpoint; alone: the families

tljax train --help lists every setting. Exit codes: 0 done, 64 bad configuration, 65 bad data, 66 bad weights
or checkpoint, 69 a process or host was lost, 70 diverged or out of memory, 74 cannot write, 75 stopped by a signal
and saved, 1 a bug.
"""
OWNERS = ("train", "compare")  # commands that own their GPUs while they run
CONFIG_FILE = "a Python file with get_config() that gives a tljax.config.Config"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, 1)
            raise ConfigError(f"tljax {name}", "no such command", f"one of {', '.join(COMMANDS)}",
                              f"did you mean {near[0]!r}?" if near else "")  # fmt: skip
        if name not in OWNERS:  # a person may do other things beside on the same GPU: memory as it is needed
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        COMMANDS[name](rest)
        sys.stdout.flush()
    except TljaxError as error:
        print(f"tljax: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tljax: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has enough: tljax show REF | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a program that SIGPIPE ends
    return 0


def _train(arguments: list[str]) -> None:
    from tljax import config as settings

    if "--help" in arguments:
        print("usage: tljax train --config=FILE --workdir=DIR [--config.a.b=value …]\n\n" + settings.help_text())
        return
    values = _parse("train", arguments, {"workdir": None}, config=True)
    config = _validated(values["config"].value)
    _quiet()
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
    values = _parse("compare", arguments, names, config=True)
    config = _validated(values["config"].value)
    seeds = _whole(values, "seeds")
    try:
        minutes = float(values["minutes"].value)
    except ValueError:
        raise ConfigError("--minutes", f"{values['minutes'].value!r}", "a number") from None
    _quiet()
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
    switches = {"largest_batch": "false", "json": "false"}
    given = [f"{a}=true" if a.removeprefix("--") in switches else a for a in arguments]
    values = _parse("plan", given, {"topology": "local", "classes": "0", **switches}, config=True)
    config = _validated(values["config"].value)
    classes = _whole(values, "classes")
    _quiet()
    if values["topology"].value != "local":
        os.environ["JAX_PLATFORMS"] = "cpu"  # for the little that is computed here
    from tljax.run import devices, inputs, plan

    devices.prepare(config, None)
    planner = plan.planner(config, values["topology"].value, classes or len(inputs.read(config).classes))
    found = planner.at(config.train.batch_size)
    if values["largest_batch"].value == "true":
        found = planner.largest(found)
    print(json.dumps(plan.as_json(found)) if values["json"].value == "true" else plan.render(found))


def _eval(arguments: list[str]) -> None:
    values = _parse("eval", arguments, {"workdir": None, "data": ""})
    _quiet()
    from tljax.evaluate import metrics
    from tljax.run import predict

    scores, source = predict.evaluate(Path(values["workdir"].value), values["data"].value)
    print(metrics.table(scores))
    print(f"\n{source}: accuracy {metrics.shown(scores.accuracy)}, macro-F1 {metrics.shown(scores.macro_f1)}, "
          f"loss {metrics.shown(scores.loss)}, {scores.n:,} examples")  # fmt: skip


def _predict(arguments: list[str]) -> None:
    values = _parse("predict", arguments, {"workdir": None, "input": None, "output": None})
    _quiet()
    from tljax.run import predict

    count = predict.predict(Path(values["workdir"].value), values["input"].value, Path(values["output"].value))
    print(f"{count:,} predictions in {values['output'].value}")


def _export(arguments: list[str]) -> None:
    values = _parse("export", arguments, {"workdir": None, "output": None, "format": "hf"})
    _quiet()
    from tljax.run import export

    output = Path(values["output"].value)
    export.export(Path(values["workdir"].value), output, values["format"].value)
    print(f"model in {output}")


def _convert(arguments: list[str]) -> None:
    values = _parse("convert", arguments, {"input": None, "output": None, "format": "hf", "revision": ""})
    _quiet()
    from tljax.run import convert

    given = {name: values[name].value for name in ("input", "output", "format", "revision")}
    print(convert.convert(given["input"], Path(given["output"]), given["format"], given["revision"]))


def _show(arguments: list[str]) -> None:
    values = _parse("show", arguments, {"strategy": "full", "k": "2", "revision": ""}, positional="[REF]")
    k = _whole(values, "k")
    _quiet()
    from tljax.run import show

    if not values["[REF]"]:
        print(show.families())
        return
    print(show.show(values["[REF]"], values["strategy"].value, k, values["revision"].value))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "compare": _compare,
    "plan": _plan,
    "eval": _eval,
    "predict": _predict,
    "export": _export,
    "convert": _convert,
    "show": _show,
}


def _parse(command: str, arguments: list[str], names: dict[str, str | None], config: bool = False,
           positional: str = "") -> dict[str, Any]:  # fmt: skip
    """Reads absl flags; `names` gives defaults, None where the flag must be given."""
    from absl import flags

    values = flags.FlagValues()
    if config:  # settings may stand before the file that they change, which ml_collections refuses
        arguments = sorted(arguments, key=lambda a: not a.startswith("--config="))
    for name, default in names.items():
        flags.DEFINE_string(name, default, "", flag_values=values)
    if config:
        _define_config(arguments, values)
    try:
        left = values([command, *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        known = [*names, *(["config"] if config else [])]
        raise ConfigError(
            f"--{error.flagname}", "no such flag", f"one of {', '.join('--' + n for n in known)}"
        ) from None
    except flags.Error as error:
        first, *more = str(error).strip().splitlines()  # of an error in a config file the last line says what it was
        found = f"{first.rstrip(':')}: {more[-1].strip()}" if more else first.rstrip(".")
        raise ConfigError(f"tljax {command}", found) from None
    except KeyError as error:
        raise _unknown_setting(arguments, error) from None
    except (SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError, OSError) as error:
        if not config:
            raise
        raise ConfigError(
            "--config", f"cannot be run ({type(error).__name__}: {printable(error)})", CONFIG_FILE
        ) from None
    if missing := [name for name, default in names.items() if default is None and not values[name].value]:
        raise ConfigError(f"tljax {command}", f"no --{missing[0]}", f"--{missing[0]}=…", "see tljax --help")
    if len(left) > bool(positional):
        found = f"{len(left)} of {positional}" if positional else repr(left[0])
        raise ConfigError(
            f"tljax {command}", f"found {found}", f"at most one {positional}" if positional else "flags alone"
        )
    return {
        **{name: values[name] for name in [*names, *(["config"] if config else [])]},
        positional: left[0] if left else "",
    }


def _validated(config: Any) -> "Config":
    from tljax import config as settings

    if not isinstance(config, settings.Config):
        raise ConfigError("--config", f"get_config() gives a {type(config).__name__}", CONFIG_FILE)
    return settings.validate(config)


def _whole(values: dict[str, Any], name: str) -> int:
    if not values[name].value.isdecimal():
        raise ConfigError(f"--{name}", f"{values[name].value!r}", "a whole number")
    return int(values[name].value)


def _define_config(arguments: list[str], values: "flags.FlagValues") -> None:
    from ml_collections import config_flags

    path = next((a.removeprefix("--config=") for a in arguments if a.startswith("--config=")), "")
    if not path:
        raise ConfigError("tljax train", "no --config", "--config=configs/<name>.py", "see configs/ for examples")
    if not os.path.isfile(path.split(":")[0]):
        folder, name = os.path.split(path)
        there = (
            [f for f in sorted(os.listdir(folder or ".")) if f.endswith(".py")] if os.path.isdir(folder or ".") else []
        )
        near = difflib.get_close_matches(name, there, 1)
        raise ConfigError("--config", f"there is no file {path!r}", CONFIG_FILE,
                          f"did you mean {os.path.join(folder, near[0])}?" if near else "")  # fmt: skip
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["tljax", *arguments])


def _unknown_setting(arguments: list[str], error: KeyError) -> ConfigError:
    """Which of the arguments names a setting that does not exist, and the nearest that do."""
    from tljax import config as settings

    known = {name for name, _, _ in settings.settings(settings.Config())}
    given = [a.removeprefix("--").partition("=")[0] for a in arguments if a.startswith("--config.")]
    unknown = [name for name in given if name not in known]
    if not unknown:
        return ConfigError("--config", str(error.args[0]) if error.args else "cannot be read")
    return ConfigError(f"--{unknown[0]}", "no such setting", settings.nearest(unknown[0].removeprefix("config.")))


def _quiet() -> None:
    """Settings of the environment that must stand before JAX is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes on CPU features
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


if __name__ == "__main__":
    sys.exit(main())
