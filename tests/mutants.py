"""Mutation testing: ``python -m tests.mutants`` changes the code at random places and runs the tests that should fail.

Cosmic Ray (https://cosmic-ray.readthedocs.io) finds the places and makes the changes, called mutants, in a copy of the
project. A mutant is killed if a test fails or takes too long. Tests of a mutant run in a fork of this process, which
has imported the large libraries once. Needs a POSIX system.
"""

import argparse
import ast
import compileall
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from py_compile import PycInvalidationMode

import cosmic_ray.plugins
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
LIBRARIES = ("hypothesis", "array_api_strict", "matplotlib.figure", "onnxruntime", "PIL.Image", "safetensors.numpy")
PYTEST = (
    "-x",
    "-q",
    "--no-header",
    "--assert=plain",
    "-p",
    "no:cacheprovider",
    "-m",
    "not slow and not torch and not gpu",
)

TESTS = {  # pattern of modules: test modules, and which of their tests; the first pattern that fits counts
    "layers/reference.py": ("test_reference", ""),
    "layers/norm.py": ("test_layers test_ops_norm test_finite", "norm and not strict and not layout"),
    "layers/pool.py": ("test_layers", "pool and not strict and not layout"),
    "layers/conv.py": ("test_layers", "conv and not strict and not layout"),
    "layers/affine.py": ("test_layers", "affine and not strict and not layout"),
    "layers/dropout.py": ("test_layers test_random", "(dropout or mask) and not strict and not layout"),
    "layers/loss.py": ("test_layers", "(softmax or svm or score or label or sums) and not strict and not layout"),
    "layers/*": ("test_layers test_cs231n_layers", "refused or geometry or same"),
    "ops/numpy/_norm.py": (
        "test_ops_norm test_layers test_ops_parity",
        "(norm or parity) and not strict and not layout",
    ),
    "ops/numpy/_winograd.py": ("test_winograd", ""),
    "ops/numpy/_conv.py": (
        "test_layers test_ops_windows test_ops_parity",
        "(conv or parity) and not strict and not layout",
    ),
    "ops/numpy/_pool.py": ("test_ops_windows test_layers", "pool and not strict and not layout"),
    "ops/numpy/_blas.py": ("test_blas", ""),
    "ops/numpy/_workers.py": ("test_workers test_tiling test_blas", ""),
    "ops/numpy/_elementwise.py": (
        "test_layers test_optim test_ops_parity",
        "(relu or softmax or adam or score or denormal or parity) and not strict and not layout",
    ),
    "ops/numpy/*": ("test_tiling test_ops_windows test_ops_parity test_optim", "not strict"),
    "ops/norm.py": ("test_ops_norm test_ops_parity test_layers test_finite", "(norm or parity) and not layout"),
    "ops/conv.py": ("test_layers test_ops_windows test_ops_parity", "(conv or parity) and not layout"),
    "ops/pool.py": ("test_ops_windows test_layers test_ops_parity", "(pool or parity) and not layout"),
    "ops/windows.py": ("test_ops_windows", "not device1"),
    "ops/finite.py": ("test_finite", ""),
    "ops/random_bits.py": ("test_random", ""),
    "ops/update.py": ("test_optim", "not device1"),
    "ops/loss.py": ("test_layers test_ops_parity", "(loss or parity or softmax or svm or score) and not layout"),
    "ops/*": ("test_tiling test_ops_parity test_nets test_backend", "not device1"),
    "training/optim.py": ("test_optim", "not strict"),
    "training/schedules.py": ("test_schedules test_solver_options", "schedule"),
    "training/checkpoint.py": ("test_atomic_writes test_resume", "checkpoint or kept or folder"),
    "training/preflight.py": ("test_preflight", "not strict"),
    "training/_signals.py": ("test_resume", "ctrl_c or handler or thread or signal"),
    "training/_progress.py": ("test_solver test_cli", "log or bar or prints or progress or terminal or output"),
    "training/_nonfinite.py": ("test_finite", "not strict and not command"),
    "training/_state.py": ("test_resume", "not strict"),
    "training/*": ("test_solver test_finite test_solver_options test_resume", "not strict and not command"),
    "io/torch.py": ("test_torch_state_dict", ""),
    "io/onnx.py": ("test_onnx", ""),
    "io/_atomic.py": ("test_atomic_writes", ""),
    "io/_lock.py": ("test_atomic_writes test_kill", "lock or folder_in_use"),
    "io/*": ("test_model_files test_fuzz_files", "not image and not pickle and not batch and not archive"),
    "data/images.py": ("test_fuzz_files test_folder", "image or pipe or frame or jpeg"),
    "data/cifar10.py": ("test_datasets test_fuzz_files", "datasets or batch or pickle or archive or label"),
    "data/augment.py": ("test_augment", "not device1"),
    "data/rows.py": ("test_rows", "not command and not ctrl_c"),
    "data/sampling.py": ("test_batches", "not strict"),
    "data/batches.py": ("test_batches", "not strict"),
    "data/digits.py": ("test_datasets", "digit"),
    "data/_fingerprint.py": ("test_resume test_folder", "data or noticed or eval"),
    "data/_checks.py": ("test_solver test_preflight", "data or images or invalid"),
    "data/*": ("test_folder test_datasets", "not command"),
}
MODULES = ("layers", "ops", "training", "io", "data")

# Changes that Python or NumPy always refuses, or that rarely change the result, such as == to "is".
NUMBER, BITS, ORDER = "(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)", "(RShift|LShift|Bit[A-Za-z]+)", "(Eq|NotEq|LtE?|GtE?)"
POINTLESS = re.compile(f"{NUMBER}_{BITS}|{BITS}_{NUMBER}|{ORDER}_Is(Not)?|Is(Not)?_{ORDER}")


def tests_of(module):
    """Return pytest's arguments for the examples and the tests of a module."""
    names, selection = next(
        entry for pattern, entry in TESTS.items() if fnmatch(module.removeprefix("xpconv/"), pattern)
    )
    files = [f"tests/{name}.py" for name in names.split() if (ROOT / f"tests/{name}.py").is_file()]
    return [module, *files, *(["-k", f"{Path(module).stem} or ({selection})"] if selection else [])]


def without_effect(source):
    """Return the spans of type annotations, and of private constants like ``_TILE_BYTES = 1 << 22``, which set sizes.

    Such sizes change the speed, and the last bits of results.
    """
    tree = ast.parse(source)
    parts = [
        getattr(node, attribute)
        for node in ast.walk(tree)
        for attribute in ("annotation", "returns")
        if getattr(node, attribute, None) is not None
    ]
    for node in tree.body:
        if isinstance(node, ast.Assign) and re.match("_[A-Z_]+ = [0-9 <]+$", ast.unparse(node)):
            parts.append(node.value)
    return [((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)) for part in parts]


def places(module):
    """Return all mutants (operator, occurrence) of a module by their places (module, line, column)."""
    source = (ROOT / module).read_text(encoding="utf-8")
    nodes, ignored, found = list(ast_nodes(get_ast(source))), without_effect(source), defaultdict(list)
    for name in cosmic_ray.plugins.operator_names():
        operator = cosmic_ray.plugins.get_operator(name)
        if operator.arguments() or POINTLESS.search(name):
            continue
        positions = (position for node in nodes for position in operator().mutation_positions(node))
        for occurrence, (start, _) in enumerate(positions):
            if not any(first <= start < last for first, last in ignored):
                found[module, *start].append((name, occurrence))
    return found


def draw(modules, number, seed):
    """Return one random mutant (module, line, column, operator, occurrence) at each of `number` random places."""
    found = {place: mutants for module in modules for place, mutants in places(module).items()}
    rng, chosen = random.Random(seed), []
    for place in rng.sample(sorted(found), len(found)):
        mutant = (*place, *rng.choice(found[place]))
        if len(chosen) < number and change((ROOT / place[0]).read_text(encoding="utf-8"), *mutant[3:]):
            chosen.append(mutant)
    print(f"{len(chosen)} of {len(found)} places, seed {seed}", flush=True)
    return chosen


def change(source, operator, occurrence):
    """Return the source of a mutant, or None if it is no Python."""
    mutated = mutate_code(source, cosmic_ray.plugins.get_operator(operator)(), occurrence)
    try:
        compile(mutated, "mutant", "exec")
    except SyntaxError:  # the star between positional and keyword arguments was taken for a product
        return None
    return mutated


def run_tests(arguments, timeout, log):
    """Run pytest in a fork of this process, with its output in a file; return how it ended."""
    if (child := os.fork()) == 0:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 1
        try:
            status = int(pytest.main([*PYTEST, *arguments]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    end = time.monotonic() + timeout
    while (result := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if result[0] == 0:
        os.waitpid(child, 0)
        return "timed out"
    return "failed" if result[1] else "passed"


def check_tests(copy, modules, timeout):
    """Check that the tests of each module pass before it is changed."""
    log = copy.with_name("log")
    for module in modules:
        start = time.monotonic()
        if run_tests(tests_of(module), timeout, log) != "passed":
            sys.exit(f"{log.read_text(encoding='utf-8')}\nthe tests of {module} fail or take too long")
        print(f"the tests of {module} pass in {time.monotonic() - start:.0f} s", flush=True)


def test_mutant(copy, mutant, timeout):
    """Make a mutant in the copy, run its tests and restore the module; return what happened."""
    module, line, _, operator, occurrence = mutant
    path, log = copy / module, copy.with_name("log")
    source = path.read_text(encoding="utf-8")
    mutated = change(source, operator, occurrence)
    start = time.monotonic()
    path.write_text(mutated, encoding="utf-8")
    try:
        ended = run_tests(tests_of(module), timeout, log)
    finally:
        path.write_text(source, encoding="utf-8")
    failures = re.findall(r"^(?:FAILED|ERROR) (.*)", log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return {
        "mutant": mutant,
        "survived": ended == "passed",
        "old": source.splitlines()[line - 1].strip(),
        "new": mutated.splitlines()[line - 1].strip(),
        "by": failures[0][:200] if failures else ended,
        "seconds": round(time.monotonic() - start, 1),
    }


def main():
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="modules such as xpconv/layers/conv.py; all by default")
    parser.add_argument("--number", type=int, default=200, help="of random places, each with one mutant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the tests of one mutant")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"), help="one line of JSON for each mutant")
    parser.add_argument("--again", type=Path, help="test the survivors of an earlier --results file instead")
    parser.add_argument("--check", action="store_true", help="only run the tests of each module, without a mutant")
    options = parser.parse_args()
    modules = options.modules or [
        str(path.relative_to(ROOT))
        for folder in MODULES
        for path in sorted((ROOT / "xpconv" / folder).rglob("*.py"))
        if "cupy" not in path.parts
    ]
    if options.again:
        results = [json.loads(line) for line in options.again.read_text(encoding="utf-8").splitlines()]
        mutants = [tuple(result["mutant"]) for result in results if result["survived"]]
    else:
        mutants = draw(modules, options.number, options.seed)
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder, options.results.open("w", encoding="utf-8") as results_file:
        copy = Path(folder, "project")
        unwanted = shutil.ignore_patterns(".*", "__pycache__", "_build", "*.jsonl")
        shutil.copytree(ROOT, copy, ignore=unwanted)
        compileall.compile_dir(copy / "xpconv", quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy)
        sys.path[:] = [str(copy), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
        sys.dont_write_bytecode = True
        if options.check:
            check_tests(copy, modules, options.timeout)
            return
        survivors = 0
        for k, mutant in enumerate(mutants, 1):
            result = test_mutant(copy, mutant, options.timeout)
            print(json.dumps(result), file=results_file, flush=True)
            survivors += result["survived"]
            if result["survived"] or result["by"] == "timed out":  # the tests may have been slow, not the mutant
                kind = "survived" if result["survived"] else "timed out"
                print(f"{kind}: {mutant[0]}:{mutant[1]}\n    - {result['old']}\n    + {result['new']}", flush=True)
            if k % 10 == 0:
                print(f"{k} of {len(mutants)}: {survivors} survivors", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants were killed")


if __name__ == "__main__":
    main()
