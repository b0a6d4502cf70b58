"""`xpconv bench`: a net's training step on two backends, and whether the move pays."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.helpers import find_backend
from xpconv import ConvNet, get_backend, save_model
from xpconv.backend._memory import peak_bytes
from xpconv.cli._app import app
from xpconv.cli._bench import Step, load_net, measure_step, table, verdict
from xpconv.cli._bench_workers import CostModel, measure_workers
from xpconv.errors import ArgumentError, CheckpointError, XpconvError
from xpconv.parallel import Threads


def make_net(backend="numpy", **options):
    return ConvNet([4, "pool", 6], input_dim=(2, 6, 6), num_classes=3, rng=0, backend=backend, **options)


def call(*words, **environment):
    return CliRunner().invoke(app, ["bench", *map(str, words)], env={"XP_BACKEND": None, **environment})


@pytest.fixture
def model(tmp_path):
    save_model(make_net(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"settings": {}, "model": make_net().config()}))
    return tmp_path / "config.json"


@pytest.mark.parametrize("given", ["model", "config"])
def test_a_net_is_measured_on_both_backends_and_judged(given, request):
    result = call(request.getfixturevalue(given), "--backend", "array_api_strict:device1", "--batch-size", 5)
    assert result.exit_code == 0, result.stderr
    header, here, there, sentence = result.stdout.splitlines()
    assert header.split("\t") == ["backend", "step, ms", "images/s", "moving a minibatch, ms", "memory, MiB"]
    for row, backend in ((here, "numpy"), (there, "array_api_strict:device1")):
        name, *figures = row.split("\t")
        assert name == backend
        assert all(float(figure) >= 0 for figure in figures)
        assert float(figures[0]) > 0
    assert sentence.startswith("The move ")


def test_the_backend_may_come_from_the_environment(model):
    assert "\narray_api_strict\t" in call(model, XP_BACKEND="array_api_strict").stdout


def test_a_backend_that_cannot_run_is_named_in_one_line(model):
    result = call(model, "--backend", "array_api_strict:nowhere")
    assert result.exit_code == 1
    assert result.stderr.startswith("xpconv: error: array_api_strict has no device 'nowhere'")


def test_numpy_is_not_compared_with_itself(model):
    result = call(model, "--backend", "numpy")
    assert result.exit_code == 2
    assert "the other backend is compared with numpy: name another one, such as cupy." in result.stderr


def test_a_file_that_describes_no_net_is_refused(tmp_path, config):
    assert load_net(config, "numpy").config() == make_net().config()
    for name, text in (("other.json", "{}"), ("broken.json", "{"), ("list.json", "[]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError, match=f"{name} describes no net .*: give a model.safetensors or"):
            load_net(tmp_path / name, "numpy")
    with pytest.raises(CheckpointError, match=r"missing\.json describes no net"):
        load_net(tmp_path / "missing.json", "numpy")
    with pytest.raises(CheckpointError, match=r"missing.safetensors"):
        load_net(tmp_path / "missing.safetensors", "numpy")


def test_backends_that_disagree_are_not_compared():
    other = make_net()
    other.params["W1"] = other.params["W1"] + 1
    with pytest.raises(XpconvError, match=r"the loss is \S+ on numpy but \S+ on numpy: one of them computes wrong"):
        measure_step([make_net(), other], 5)


def test_an_empty_minibatch_is_refused():
    with pytest.raises(ArgumentError, match="batch_size is 0; expected an int, 1 or more"):
        measure_step([make_net()], 0)


def test_a_step_of_float64_on_the_host_moves_nothing():
    (step,) = measure_step([make_net(dtype="float64")], 5)
    assert (step.backend, step.images, step.move) == ("numpy", 5, 0.0)
    assert step.first > 0


@pytest.mark.parametrize("backend", ["numpy", "array_api_strict"])
def test_memory_is_the_peak(backend):
    backend = get_backend(backend)
    ones = backend.xp.ones

    def call():
        a = ones(1_000_000)
        del a
        b, c = ones(1_000_000), ones(500_000)
        del b, c

    assert peak_bytes(backend, call) == pytest.approx(12e6, rel=0.01)


@pytest.mark.gpu
def test_memory_of_a_gpu_is_the_peak():
    backend = find_backend("cupy")
    old = [backend.xp.ones(1_000_000)]

    def call():
        old.clear()
        a = backend.xp.ones(1_000_000)
        b = backend.xp.ones(500_000)
        del a, b

    assert peak_bytes(backend, call) == pytest.approx(4e6, rel=0.01)


def judge(seconds, move=0.0, first=0.0):
    here = Step("numpy", images=10, first=0.1, seconds=0.1, move=0.0, memory=0)
    return verdict(here, Step("cupy:0", images=10, first=first or seconds, seconds=seconds, move=move, memory=1 << 20))


def test_verdict_depends_on_steps_moves_and_start():
    assert judge(0.01).startswith("The move pays: cupy:0 trains 10.0 times as fast as numpy, and after 1 steps")
    assert "after 23 steps has made up for the 2.0 s of its start" in judge(0.01, first=2.01)
    assert judge(0.2).startswith("The move does not pay: cupy:0 trains 2.0 times as slowly")
    assert judge(0.01, move=0.2).startswith("The move does not pay: cupy:0 trains 2.0 times as slowly")
    assert judge(0.1) == "The move does not pay: cupy:0 trains as fast as numpy."


def test_the_table_has_a_row_for_each_step():
    step = Step("cupy:0", images=512, first=1.0, seconds=0.002, move=0.004, memory=3 << 20)
    assert table([step, step])[1:] == [("cupy:0", "2.000", "128000", "4.000", "3.0")] * 2


def test_measuring_leaves_tracing_off():
    import tracemalloc

    peak_bytes(get_backend("numpy"), lambda: np.ones(10))
    assert not tracemalloc.is_tracing()


def test_workers_are_compared_with_one_of_them(config):
    result = call(config, "--workers", "--backend", "numpy", "--batch-size", 4)
    assert result.exit_code == 0, result.stderr
    step, exchange, sent, title, header, *rows = result.stdout.splitlines()
    assert step.startswith("a step of 4 images: ")
    assert exchange.startswith("an exchange among 1 workers: ")
    assert header.split("\t") == ["workers", "25 GB/s", "100 GB/s", "450 GB/s"]
    assert [row.split("\t")[0] for row in rows] == ["2", "4", "8", "16", "32", "64", "128", "256", "512", "1,024"]
    assert title == "efficiency of more workers, each with 4 images of the minibatch:"
    assert sent.endswith(" exchanges in a step")


def test_all_workers_measure_together():
    """Gradients of 8 bytes a parameter, and exchanges for the signal, the gradients and the two batch norms."""
    (_, model), *_ = Threads.run(2, lambda each: measure_workers(make_net(dtype="float64"), 8, each))
    assert model.gradient_bytes == 8 * sum(w.size for w in make_net().params.values())
    assert model.exchanges == 3 + 2 * 2
    assert min(model.compute, model.latency) > 0


def test_the_cost_model_is_that_of_a_ring():
    """On many workers each sends and receives its gradients twice; latencies do not depend on the bandwidth."""
    model = CostModel(compute=0.1, gradient_bytes=10**9, exchanges=5, latency=1e-3)
    assert model.step(2, bandwidth=1e10) == pytest.approx(0.1 + 1e9 / 1e10 + 0.005)
    assert model.step(1024, bandwidth=1e10) == pytest.approx(0.1 + 2 * 1023 / 1024 * 0.1 + 0.005)
    assert model.efficiency(2, bandwidth=1e30) == pytest.approx(0.1 / 0.105)
