"""What a page needs to run its cells: sharp pictures, and magics for cells that hold shell commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

from IPython import get_ipython


def _start(script):
    return subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def sh(line, cell):
    """Run a cell as a shell script and show all it prints; it must end with the status in `line`, by default 0."""
    run = _start(cell)
    print(run.communicate()[0], end="")
    if run.returncode != int(line or 0):
        raise RuntimeError(f"exit status {run.returncode}")


def sh_until(line, cell):
    """Run a cell as a shell script, and press Ctrl-C as soon as there is a file that matches the pattern `line`."""
    run = _start(cell)
    while run.poll() is None and not any(Path().glob(line)):
        time.sleep(0.05)
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGINT)
    print(run.communicate()[0], end="")


for magic in (sh, sh_until):
    get_ipython().register_magic_function(magic, "cell")
get_ipython().run_line_magic("config", "InlineBackend.figure_formats = ['retina']")
