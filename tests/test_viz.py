"""Pictures of filters, metrics and runs, and the example that filters images."""

import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xpconv.backend import get_backend
from xpconv.data import load_digits
from xpconv.errors import ArgumentError, XpconvError
from xpconv.nn import TwoLayerNet
from xpconv.training.solver import Solver
from xpconv.viz import _curves, _filters, save_comparison, save_curves, save_filters, visualize_grid
from xpconv.viz._figure import import_figure

GAP = (70, 130, 180)  # steelblue
EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "image_filters.py"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def device_array(x):
    pytest.importorskip("array_api_strict")
    return get_backend("array_api_strict:device1").asarray(np.asarray(x))


def grid_by_loops(Xs, ubound, padding):
    N, H, W, C = Xs.shape
    side = math.ceil(math.sqrt(N))
    grid = np.zeros((H * side + padding * (side - 1), W * side + padding * (side - 1), C))
    for n in range(N):
        top, left = n // side * (H + padding), n % side * (W + padding)
        low, high = Xs[n].min(), Xs[n].max()
        grid[top : top + H, left : left + W] = ubound * (Xs[n] - low) / (high - low)
    return grid


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("N", [1, 2, 5, 9])
def test_grid_arranges_and_rescales_every_tile(rng, N, padding):
    Xs = rng.normal(size=(N, 4, 3, 2))
    grid = visualize_grid(Xs, ubound=7.0, padding=padding)
    assert grid.dtype == np.float64
    np.testing.assert_allclose(grid, grid_by_loops(Xs, 7.0, padding), atol=1e-12)


def test_grid_takes_integer_arrays_on_a_device():
    grid = visualize_grid(device_array(np.array([0, 5, 10, 200], np.uint8).reshape(1, 2, 2, 1)))
    assert type(grid) is np.ndarray
    np.testing.assert_allclose(grid[:, :, 0], [[0, 6.375], [12.75, 255]])


def test_a_constant_tile_is_black():
    np.testing.assert_array_equal(visualize_grid(np.full((1, 2, 2, 3), 4.0)), np.zeros((2, 2, 3)))


@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 4, 4, 3)])
def test_grid_refuses_other_shapes(shape):
    with pytest.raises(ArgumentError, match=r"Xs has shape .*; expected images \(N, H, W, C\), at least one"):
        visualize_grid(np.zeros(shape))


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def is_grey(image):
    return bool((image == image[:, :, :1]).all())


@pytest.mark.parametrize(("channels", "grey"), [(3, False), (1, True), (2, True)])
def test_filters_of_three_channels_are_in_colour_and_others_grey(rng, tmp_path, channels, grey):
    path = tmp_path / "filters.png"
    save_filters(device_array(rng.normal(size=(6, channels, 5, 5)).astype(np.float32)), path)
    image = pixels(path)
    tiles = image[(image != GAP).any(axis=2)]
    coloured = (tiles != tiles[:, :1]).any(axis=1).mean()
    assert coloured < 0.02 if grey else coloured > 0.3  # pixels at the edges of tiles are blended with the gap
    assert (tiles.min(), tiles.max()) == (0, 255)


def test_gaps_between_filters_are_thin_and_have_a_colour_of_their_own(tmp_path):
    path = tmp_path / "filters.png"
    save_filters(np.array([-1.0, 1, 1, -1] * 4).reshape(4, 1, 2, 2), path)
    image = pixels(path)
    rows, columns = np.nonzero((image == GAP).all(axis=2))
    inside = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    fractions = [(inside == colour).all(axis=2).mean() for colour in (0, 255, GAP)]
    np.testing.assert_allclose(fractions, [0.48, 0.48, 0.04], atol=0.02)


@pytest.fixture
def grids(monkeypatch):
    """The colours of the tiles of each panel, as (N, H, W, 3), in the order in which the panels are drawn."""
    grids = []
    draw = _filters._with_thin_gaps
    monkeypatch.setattr(_filters, "_with_thin_gaps", lambda colors: grids.append(colors) or draw(colors))
    return grids


def test_each_filter_is_scaled_by_its_largest_weight_and_the_largest_norm_is_first(tmp_path, grids):
    save_filters(np.array([[0.0, 0.5, -1, 1], [0, 30, -40, 20]]).reshape(2, 1, 2, 2), tmp_path / "filters.png")
    np.testing.assert_allclose(grids[0][..., 0].reshape(2, 4), [[0.5, 0.875, 0, 0.75], [0.5, 0.75, 0, 1]])


def test_the_change_of_filters_has_one_scale_and_a_panel_of_its_own(tmp_path, grids):
    before = np.array([[2.0, 0, 0, 0], [1, 1, 0, -1]]).reshape(2, 1, 2, 2)
    after = np.array([[2.0, 0.5, 0, 0], [0, 1, 0.5, -1]]).reshape(2, 1, 2, 2)
    save_filters(after, tmp_path / "filters.png", before=before)
    first, second = (grid[..., 0].reshape(2, 4) for grid in grids[:2])
    np.testing.assert_allclose(first, [[1, 1, 0.5, 0], [1, 0.5, 0.5, 0.5]])  # the second filter changed more
    np.testing.assert_allclose(second, [[0.5, 1, 0.75, 0], [1, 0.625, 0.5, 0.5]])
    white, blue, half_orange = [1, 1, 1], [0, 0.45, 0.7], [0.92, 0.685, 0.5]
    np.testing.assert_allclose(grids[2].reshape(2, 4, 3)[0], [blue, white, half_orange, white])
    np.testing.assert_allclose(grids[2].reshape(2, 4, 3)[1], [white, half_orange, white, white])


def test_filters_that_training_did_not_change_are_drawn(tmp_path, grids):
    save_filters(np.zeros((2, 3, 3, 3)), tmp_path / "filters.png", before=np.zeros((2, 3, 3, 3)))
    assert [float(grid.min()) for grid in grids] == [float(grid.max()) for grid in grids] == [0.5, 0.5, 0.5]


def test_affine_weights_are_refused_as_filters(tmp_path):
    with pytest.raises(ArgumentError, match=r"w has shape \(3, 4\); expected filters \(F, C, KH, KW\)"):
        save_filters(np.zeros((3, 4)), tmp_path / "filters.png")
    assert not list(tmp_path.iterdir())


def test_filters_before_and_after_training_are_side_by_side(rng, tmp_path):
    before, after = rng.normal(size=(2, 6, 1, 5, 5))
    save_filters(after, tmp_path / "both.png", before=before)
    save_filters(after, tmp_path / "after.png")
    both, alone = pixels(tmp_path / "both.png"), pixels(tmp_path / "after.png")
    assert both.shape == (alone.shape[0], 3 * alone.shape[1], 3)
    left, middle, right = np.split(both, 3, axis=1)
    assert (left != middle).any(axis=2).mean() > 0.3
    assert not is_grey(right)


def test_filters_before_training_must_have_the_same_shape(tmp_path):
    with pytest.raises(ArgumentError, match=r"before has shape \(3, 1, 2, 2\); expected that of w, \(2, 1, 2, 2\)"):
        save_filters(np.ones((2, 1, 2, 2)), tmp_path / "filters.png", before=np.ones((3, 1, 2, 2)))


def make_history(losses, train, val):
    return {"loss_history": losses, "train_acc_history": train, "val_acc_history": val}


@pytest.mark.parametrize(
    "convert",
    [
        list,
        np.asarray,
        device_array,
        lambda values: [device_array(v) for v in values],
        lambda values: [np.float32(v) for v in values],
    ],
    ids=["list", "numpy", "device", "device scalars", "numpy scalars"],
)
def test_curves_take_lists_and_arrays_on_any_device(tmp_path, convert):
    path = tmp_path / "curves.png"
    save_curves(make_history(convert([2.3, 2.0, 1.5, 1.6]), convert([0.1, 0.5]), convert([0.1, 0.4])), path)
    assert not is_grey(pixels(path))


def test_validation_losses_are_drawn_at_the_iterations_of_their_checks(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(_curves, "write_figure", lambda figure, path: figures.append(figure))
    history = make_history([2.0] * 25, [0.1, 0.4, 0.5], [0.1, 0.4, 0.5]) | {"val_loss_history": [2.3, 1.9, 3.5]}
    for options in ({"iterations_per_epoch": 10}, {}):
        save_curves(history | options, tmp_path / "curves.png")
    for figure, checked in zip(figures, ([1, 10, 20], [1, 12, 24]), strict=True):
        (axes,) = (axes for axes in figure.axes if axes.get_title() == "Loss")
        (line,) = (line for line in axes.lines if line.get_label() == "validation")
        assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (checked, [2.3, 1.9, 3.5])
        assert axes.get_ylim()[1] > 3.5


def test_checks_are_drawn_at_their_epochs(figures, tmp_path):
    solver = Solver(
        TwoLayerNet(input_dim=64, rng=0), load_digits(), num_epochs=5.5, check_every=2, verbose=False, rng=0
    )  # 12 iterations an epoch
    solver.train()
    save_curves(vars(solver), tmp_path / "curves.png")
    save_comparison({"run": vars(solver)}, tmp_path / "comparison.png")
    lines = {axes.get_title(): axes.lines for figure in figures for axes in figure.axes}
    assert lines["Loss"][-1].get_xdata().tolist() == [1, 24, 48, 66]
    for title in ("Accuracy", "Training accuracy", "Norm of update / norm of weights", "Fraction of dead ReLUs"):
        assert lines[title][0].get_xdata().tolist() == [0, 2, 4, 5.5], title


@pytest.mark.parametrize("losses", [[], [2.3], [2.3, math.nan, math.inf]])
def test_curves_of_an_interrupted_run_are_drawn(tmp_path, losses):
    save_curves(make_history(losses, [], []), tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").size


def test_missing_histories_are_named(tmp_path):
    with pytest.raises(ArgumentError, match="history has no train_acc_history and no val_acc_history; exp"):
        save_curves({"loss_history": []}, tmp_path / "curves.png")


def test_iterations_and_epochs_of_a_short_run_have_integer_ticks(tmp_path, figures):
    history = make_history([2.3] * 18, [0.1] * 4, [0.1] * 4) | {"learning_rate_history": [0.1] * 18}
    save_curves(history, tmp_path / "curves.png")
    save_comparison({"run": history}, tmp_path / "comparison.png")
    for axes in (*figures[0].axes, *figures[1].axes):
        assert all(tick == round(tick) for tick in axes.get_xticks()), axes.get_title()


def test_the_learning_rate_is_drawn_if_it_is_given(tmp_path, figures):
    history = make_history([2.3, 2.0, 1.5], [0.1], [0.1])
    save_curves(history, tmp_path / "curves.png")
    save_curves({**history, "learning_rate_history": [0.1, 0.1, 0.05]}, tmp_path / "curves.png")
    assert [axes.get_title() for axes in figures[0].axes] == ["Loss", "Accuracy"]
    (line,) = figures[1].axes[2].lines
    assert figures[1].axes[2].get_title() == "Learning rate"
    np.testing.assert_array_equal(line.get_xydata(), [[1, 0.1], [2, 0.1], [3, 0.05]])


def test_weights_that_are_not_trained_have_no_line(tmp_path, figures):
    ratios = {"update_ratio_W1": [math.nan, math.nan], "update_ratio_W2": [1e-3, math.nan], "update_ratio_W3": [0, 0]}
    save_curves(make_history([2.3, 2.0], [0.1, 0.3], [0.1, 0.2]) | {"health_history": ratios}, tmp_path / "curves.png")
    legend = figures[0].axes[2].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["W2", "W3", "0.001, a usual ratio"]


def test_health_is_drawn_with_one_line_for_each_layer_if_it_is_given(tmp_path, figures):
    history = make_history([2.3, 2.0, 1.5], [0.1, 0.3], [0.1, 0.2])
    ratios = {"update_ratio_W1": [1e-2, 1e-4], "update_ratio_W2": [math.inf, math.nan]}
    save_curves({**history, "health_history": ratios}, tmp_path / "curves.png")
    save_curves({**history, "health_history": {**ratios, "dead_relu_1": [0.0, 0.25]}}, tmp_path / "curves.png")
    save_curves({**history, "health_history": {}}, tmp_path / "curves.png")
    assert [[axes.get_title() for axes in figure.axes] for figure in figures] == [
        ["Loss", "Accuracy", "Norm of update / norm of weights"],
        ["Loss", "Accuracy", "Norm of update / norm of weights", "Fraction of dead ReLUs"],
        ["Loss", "Accuracy"],
    ]
    ratio, dead = figures[1].axes[2:]
    assert ratio.get_yscale() == "log"
    low, high = ratio.get_ylim()
    assert low < 1e-4 < 1e-2 < high < 0.1
    assert [text.get_text() for text in ratio.get_legend().get_texts()] == ["W1", "W2", "0.001, a usual ratio"]
    assert [text.get_text() for text in dead.get_legend().get_texts()] == ["ReLU 1"]
    np.testing.assert_array_equal(dead.lines[0].get_xydata(), [[0, 0], [1, 0.25]])


def test_the_legend_of_a_deep_net_names_at_most_eight_layers(tmp_path, figures):
    ratios = {f"update_ratio_W{k}": [1e-3, 1e-3] for k in range(1, 21)}
    save_curves(make_history([2.3], [0.1], [0.1]) | {"health_history": ratios}, tmp_path / "curves.png")
    axes = figures[0].axes[2]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [*(f"W{k}" for k in range(1, 21, 3)), "0.001, a usual ratio"]
    assert len(axes.lines) == 21


@pytest.mark.parametrize("layers", [0, 2, 21])
def test_no_panel_is_cut_off_or_covers_another(tmp_path, figures, layers):
    names = [f"residual{i}.conv" for i in range(layers)]
    health = {f"update_ratio_{name}": [1e-3, 2e-3] for name in names} | {f"dead_relu_{name}": [0, 1] for name in names}
    history = {
        "train_acc_history": [0.1, 1.0],
        "val_acc_history": [0.1, 1.0],
        "learning_rate_history": [1e-6, 1e-9],
        "health_history": health,
    }
    save_curves(history | {"loss_history": [12345.678, 0.1]}, tmp_path / "curves.png")
    (figure,) = figures
    boxes = [axes.get_tightbbox(figure.canvas.get_renderer()) for axes in figure.axes]
    assert len(boxes) == (5 if layers else 3)
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_updates_that_vanish_do_not_flatten_the_others(tmp_path, figures):
    ratios = [1e-2, 1e-3, 1e-12, 0.0]  # as with a cosine, whose last learning rate is 0
    save_curves(
        make_history([2.3], [0.1], [0.1]) | {"health_history": {"update_ratio_W1": ratios}}, tmp_path / "curves.png"
    )
    axes = figures[0].axes[2]
    assert axes.get_ylim() == (5e-7, 2e-2)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1e-2, 1e-3, 1e-6, 1e-6])


def test_one_early_loss_does_not_flatten_the_curve(tmp_path, figures):
    losses = np.concatenate([[1000.0], np.linspace(3, 1, 599)])
    save_curves(make_history(losses, [], []), tmp_path / "curves.png")
    top = figures[0].axes[0].get_ylim()[1]
    assert 3 < top < 100
    save_curves(make_history(np.linspace(2.3, 1.5, 600), [], []), tmp_path / "curves.png")
    assert 2.3 < figures[1].axes[0].get_ylim()[1] < 2.5


def test_comparison_draws_every_run_in_the_same_axes_with_its_name(tmp_path, figures):
    runs = {f"run {i}": make_history(np.linspace(2, 1, 60 + i), [0.1, 0.5 + i / 20], [0.1, 0.4]) for i in range(9)}
    save_comparison(runs, tmp_path / "comparison.png")
    (figure,) = figures
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(runs)
    assert [axes.get_title() for axes in figure.axes] == [
        "Loss, moving average",
        "Training accuracy",
        "Validation accuracy",
    ]
    for axes in figure.axes:
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 9
    np.testing.assert_array_equal(figure.axes[1].lines[3].get_xydata(), [[0, 0.1], [1, 0.65]])
    assert len(figure.axes[0].lines[3].get_xdata()) == 63 - 2


def test_an_empty_comparison_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="histories is empty; expected one run or more"):
        save_comparison({}, tmp_path / "comparison.png")
    with pytest.raises(ArgumentError, match="history has no val_acc_history"):
        save_comparison({"a": {"loss_history": [], "train_acc_history": []}}, tmp_path / "comparison.png")


def test_pictures_do_not_import_pyplot(tmp_path):
    code = (
        "import sys, numpy, xpconv.viz; assert 'matplotlib' not in sys.modules; "
        "xpconv.viz.save_filters(numpy.eye(4).reshape(1, 1, 4, 4), sys.argv[1]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "filters.png")], check=True)


def test_the_image_filters_example_shows_original_grey_and_edges(tmp_path, monkeypatch, capsys):
    path = tmp_path / "photos.png"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(path)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out == f"wrote {path}\n"
    image = pixels(path)
    thirds = np.array_split(image, 3, axis=1)
    assert [is_grey(third) for third in thirds] == [False, True, True]


def test_the_image_filters_example_computes_brightness_and_edges():
    example = runpy.run_path(str(EXAMPLE))
    from xpconv.layers import conv_forward

    step = np.zeros((1, 3, 4, 6), np.float32)
    step[..., 3:] = 1
    out, _ = conv_forward(step, example["filters"](), None)
    np.testing.assert_allclose(out[0, 0], [[0, 0, 1, 1]] * 2, atol=1e-6)
    np.testing.assert_allclose(out[0, 1], np.zeros((2, 4)), atol=1e-6)
    np.testing.assert_allclose(np.abs(out[0, 2]), [[0, 4, 4, 0]] * 2, atol=1e-6)


@pytest.mark.parametrize("backend", ["module://no_such_module", "no such backend", "tkagg"])
def test_pictures_are_drawn_whatever_backend_the_environment_names(tmp_path, backend):
    program = (
        "import os, numpy as np; from xpconv.viz import save_confusion_matrix; "
        "save_confusion_matrix([0, 1], [0, 1], ['a', 'b'], 'drawn.png'); print(os.environ['MPLBACKEND'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": backend, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout.strip()) == (0, backend), result.stderr
    assert (tmp_path / "drawn.png").exists()


def test_a_matplotlib_that_fails_to_import_is_told_in_one_line(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("matplotlib.figure"):
                raise AttributeError("module 'numpy' has no attribute 'float'")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(
        XpconvError, match=r"matplotlib, which cannot be imported \(module 'numpy' has .*xpconv\[train\]"
    ):
        import_figure()
