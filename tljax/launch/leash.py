"""Runs a command on another machine for as long as somebody holds the other end of its standard input.

python -m tljax.launch.leash COMMAND …: when standard input ends (the launcher asks, or is gone), the command gets
SIGTERM, which makes a run save. Ending ssh alone would leave it running.
"""

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Runs the command; its exit code, or 128 + the signal that ended it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end(number: int = signal.SIGTERM, frame: object = None) -> None:
        if process.poll() is None:
            os.killpg(process.pid, number)

    def hold() -> None:
        while os.read(0, 4096):
            pass
        end()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: end())
    threading.Thread(target=hold, daemon=True).start()
    code = process.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
