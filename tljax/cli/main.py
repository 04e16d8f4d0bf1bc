"""`tljax COMMAND`: which command is meant, and the exit code of what it ends in."""

import difflib
import os
import sys
from collections.abc import Sequence

from tljax.cli import commands, tools
from tljax.errors import ConfigError, TljaxError

USAGE = """\
usage: tljax COMMAND [--flag=value …]

  train    --config=FILE --workdir=DIR [--config.a.b=value …]
                                          train, evaluate, export; the same command again goes on
  eval     --workdir=DIR [--data=FILE]    score the model on its test set, or on another file
  predict  --workdir=DIR --input=FILE --output=FILE.csv [--label_shift=em|bbse] [--labelled=FILE]
                                          label, probability and runner-up of each input; corrected for other shares
                                          of the classes than in training
  calibrate --workdir=DIR [--labelled=FILE] [--method=temperature|isotonic]
                                          probabilities that can be taken at their word, from labelled examples that the
                                          run did not learn from; predict and eval use them from then on
  adapt    --workdir=DIR --target=FILE --output=DIR --method=adabn|tent
                                          the model with what it normalises by fitted to unlabelled inputs
  wiseft   --workdir=DIR [--data=FILE] [--shifted=FILE] [--points=11] [--output=DIR]
                                          the weights between the pretrained and the fine-tuned ones, scored
  export   --workdir=DIR --output=DIR [--format=hf|flax_msgpack|peft|stablehlo]
  convert  --input=REF --output=DIR [--format=hf|flax_msgpack]
                                          a checkpoint of another kind as a Hugging Face folder
  compare  --config=FILE --workdir=DIR --strategies=head,last_2,full [--seeds=3] [--minutes=0] [--config.a.b=value …]
                                          strategies side by side: scores, time, memory, and which to take
  soup     --workdir=COMPARE --strategy=NAME [--output=DIR]
                                          the mean of a comparison's models over seeds, beside each of them
  verdict  --config=FILE --workdir=DIR [--shots=1,5,10,0] [--seeds=3] [--metric=accuracy] [--config.a.b=value …]
                                          does the transfer pay? the config beside training from scratch, with few
                                          examples of each class and with all (0)
  plan     --config=FILE [--topology=v5e:4x4] [--classes=N] [--largest_batch] [--json] [--config.a.b=value …]
                                          memory, FLOPs and traffic of a step, compiled for devices here or elsewhere
  rank     --models=A,B,C --data=FILE [--stages] [--task=text|image] [--examples=2000] [--seed=0] [--json]
           [--config=FILE] [--text_column=NAME] [--image_column=NAME] [--label_column=NAME]
                                          which checkpoint to begin with, by one pass of frozen features: LogME
  show     [REF] [--strategy=NAME] [--k=N] [--source=FILE --target=FILE] [--text_column=NAME] [--image_column=NAME]
                                          family, parameters by stage, freeze table of a checkpoint; how far two sources
                                          are apart by its features; alone: the families

tljax train --help lists every setting. Exit codes: 0 done, 64 bad configuration, 65 bad data, 66 bad weights
or checkpoint, 69 a process or host was lost, 70 diverged or out of memory, 74 cannot write, 75 stopped by a signal
and saved, 1 a bug.
"""
COMMANDS = {**commands.COMMANDS, **tools.COMMANDS}
OWNERS = ("train", "compare", "verdict")  # commands that own their GPUs while they run


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
