"""A process that forks training runs, which saves their imports: ``python -m tests.kill_server``.

It reads lines of JSON, ``{"words": [...], "log": path, "when": seconds, text or null, "signal": number}``. For each
line it runs ``xpconv train`` with these words in a child process, sends it the signal after `when` seconds, or has it
send itself the signal once it has printed that text, and prints the exit code, -9 if the signal killed the run.
Pictures are not drawn: they take most of the time and depend only on files that are compared.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path


def no_picture(*arguments, **options):
    from xpconv.io._atomic import write_bytes

    write_bytes(next(argument for argument in arguments if isinstance(argument, Path)), b"a picture")


class SelfSignalling:
    """A text stream that sends this process a signal, once, when a text is written to it."""

    def __init__(self, stream, text, number):
        self._stream, self._text, self._number = stream, text, number

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        self._stream.write(text)
        if self._text and self._text in text:
            self._text = None
            self._stream.flush()
            os.kill(os.getpid(), self._number)
        return len(text)


def run(order):
    """Run the command in this process, then exit."""
    from xpconv.cli import _app

    code = 70
    try:
        descriptor = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if isinstance(order["when"], str):
            sys.stdout = SelfSignalling(sys.stdout, order["when"], order["signal"])
        _app.app(["train", *order["words"]], prog_name="xpconv")
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main():
    import matplotlib.figure  # noqa: F401

    from xpconv.cli import _results

    _results.viz.save_curves = _results.viz.save_filters = no_picture
    _results.viz.save_confusion_matrix = _results.viz.save_mistakes = no_picture
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        start = time.perf_counter()
        Path(order["log"]).write_text("")
        child = os.fork()
        if child == 0:
            run(order)
        if isinstance(order["when"], float):
            ended, status = os.waitpid(child, os.WNOHANG)
            while not ended and time.perf_counter() - start < order["when"]:
                time.sleep(0.001)
                ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                os.kill(child, order["signal"])
                _, status = os.waitpid(child, 0)
        else:
            _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
