"""Update rules agree with their formulas and with torch, in place and not, on every backend."""

import numpy as np
import pytest

from tests.helpers import assert_array
from xpconv.backend import to_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.training.optim import UPDATE_RULES, adam, adamw, lion, muon, rmsprop, sgd, sgd_momentum, sgd_nesterov

N, D = 4, 5
W = np.linspace(-0.4, 0.6, N * D).reshape(N, D)
DW = np.linspace(-0.6, 0.4, N * D).reshape(N, D)


def formula_sgd(w, dw, c):
    return w - c["learning_rate"] * dw, {}


def formula_momentum(w, dw, c):
    v = c["momentum"] * c["velocity"] - c["learning_rate"] * dw
    return w + v, {"velocity": v}


def formula_rmsprop(w, dw, c):
    cache = c["decay_rate"] * c["cache"] + (1 - c["decay_rate"]) * dw**2
    return w - c["learning_rate"] * dw / (np.sqrt(cache) + c["epsilon"]), {"cache": cache}


def formula_adam(w, dw, c):
    t = c["t"] + 1
    m = c["beta1"] * c["m"] + (1 - c["beta1"]) * dw
    v = c["beta2"] * c["v"] + (1 - c["beta2"]) * dw**2
    mhat, vhat = m / (1 - c["beta1"] ** t), v / (1 - c["beta2"] ** t)
    return w - c["learning_rate"] * mhat / (np.sqrt(vhat) + c["epsilon"]), {"m": m, "v": v, "t": t}


def formula_nesterov(w, dw, c):
    v = c["momentum"] * c["velocity"] + dw
    return w - c["learning_rate"] * (dw + c["momentum"] * v), {"velocity": v}


def formula_adamw(w, dw, c):
    return formula_adam(w * (1 - c["learning_rate"] * c["weight_decay"]), dw, c)


def formula_lion(w, dw, c):
    direction = np.sign(c["beta1"] * c["m"] + (1 - c["beta1"]) * dw)
    m = c["beta2"] * c["m"] + (1 - c["beta2"]) * dw
    return w - c["learning_rate"] * (direction + c["weight_decay"] * w), {"m": m}


def formula_muon(w, dw, c):
    """Apply the polynomial of each Newton-Schulz step to the singular values."""
    v = c["momentum"] * c["velocity"] + dw
    direction = dw + c["momentum"] * v
    matrix = direction.reshape(len(w), -1)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / (np.linalg.norm(s) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    outputs, inputs = matrix.shape if w.ndim > 2 else matrix.shape[::-1]
    step = max(1, outputs / inputs) ** 0.5 * (u * s @ vt).reshape(w.shape)
    return w * (1 - c["learning_rate"] * c["weight_decay"]) - c["learning_rate"] * step, {"velocity": v}


VELOCITY = np.linspace(0.6, 0.9, N * D).reshape(N, D)
CASES = {
    "sgd": (sgd, formula_sgd, {"learning_rate": 1e-2}),
    "sgd_momentum": (
        sgd_momentum,
        formula_momentum,
        {"learning_rate": 1e-3, "momentum": 0.9, "velocity": np.linspace(0.6, 0.9, N * D).reshape(N, D)},
    ),
    "rmsprop": (
        rmsprop,
        formula_rmsprop,
        {
            "learning_rate": 1e-2,
            "decay_rate": 0.99,
            "epsilon": 1e-8,
            "cache": np.linspace(0.6, 0.9, N * D).reshape(N, D),
        },
    ),
    "adam": (
        adam,
        formula_adam,
        {
            "learning_rate": 1e-2,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-8,
            "t": 5,
            "m": np.linspace(0.6, 0.9, N * D).reshape(N, D),
            "v": np.linspace(0.7, 0.5, N * D).reshape(N, D),
        },
    ),
    "sgd_nesterov": (
        sgd_nesterov,
        formula_nesterov,
        {"learning_rate": 1e-3, "momentum": 0.9, "velocity": VELOCITY},
    ),
    "adamw": (
        adamw,
        formula_adamw,
        {
            "learning_rate": 1e-2,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-8,
            "weight_decay": 0.5,
            "t": 5,
            "m": VELOCITY,
            "v": np.linspace(0.7, 0.5, N * D).reshape(N, D),
        },
    ),
    "lion": (
        lion,
        formula_lion,
        {"learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.5, "m": VELOCITY - 0.7},
    ),
    "muon": (
        muon,
        formula_muon,
        {"learning_rate": 1e-2, "momentum": 0.9, "weight_decay": 0.5, "velocity": np.cos(np.arange(20)).reshape(N, D)},
    ),
}
COUPLED = ["sgd", "sgd_momentum", "sgd_nesterov", "rmsprop", "adam"]
ELEMENTWISE = [name for name in CASES if name != "muon"]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def uploaded(config, backend, dtype):
    return {k: backend.asarray(v.copy(), dtype) if isinstance(v, np.ndarray) else v for k, v in config.items()}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("in_place", [False, True])
def test_rules_follow_their_formulas(case, backend, dtype, in_place):
    rule, formula, config = case
    expected, remembered = formula(W, DW, config)
    w, dw, own = backend.asarray(W.copy(), dtype), backend.asarray(DW, dtype), uploaded(config, backend, dtype)
    before = {k: v for k, v in own.items() if k in remembered and k != "t"}
    next_w, next_config = rule(w, dw, own, in_place=in_place)
    assert next_config is own
    assert_array(next_w, expected, backend, dtype)
    for name, value in remembered.items():
        if name == "t":
            assert own["t"] == value
        else:
            assert_array(own[name], value, backend, dtype)
            assert (own[name] is before[name]) is in_place
    assert (next_w is w) is in_place
    if not in_place:
        assert_array(w, W, backend, dtype)
        for name, array in before.items():
            assert_array(array, config[name], backend, dtype)


def test_rules_work_without_a_config(case):
    rule, formula, _ = case
    next_w, config = rule(W, DW)
    start = {name: np.zeros((N, D)) if isinstance(value, np.ndarray) else value for name, value in config.items()}
    start["t"] = 0
    np.testing.assert_allclose(next_w, formula(W, DW, start)[0], rtol=1e-12)


def test_published_defaults():
    adam_options = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "t": 1}
    defaults = {
        "sgd": {"learning_rate": 1e-2, "weight_decay": 0},
        "sgd_momentum": {"learning_rate": 1e-2, "momentum": 0.9, "weight_decay": 0},
        "sgd_nesterov": {"learning_rate": 1e-2, "momentum": 0.9, "weight_decay": 0},
        "rmsprop": {"learning_rate": 1e-2, "decay_rate": 0.99, "epsilon": 1e-8, "weight_decay": 0},
        "adam": {**adam_options, "weight_decay": 0},
        "adamw": {**adam_options, "weight_decay": 0.01},
        "lion": {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0},
        "muon": {"learning_rate": 0.02, "momentum": 0.95, "weight_decay": 0},
    }
    for name, rule in UPDATE_RULES.items():
        config = rule(W, DW)[1]
        assert {k: v for k, v in config.items() if not isinstance(v, np.ndarray)} == defaults[name]


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_weight_decay_adds_to_the_gradient(name, backend):
    rule, formula, config = CASES[name]
    config = {**config, "weight_decay": 0.25}
    expected, remembered = formula(W, DW + 0.25 * W, config)
    own = uploaded(config, backend, "float64")
    next_w, _ = rule(backend.asarray(W.copy()), backend.asarray(DW), own, in_place=True)
    assert_array(next_w, expected, backend, "float64")
    for key, value in remembered.items():
        np.testing.assert_allclose(to_host(own[key]), value, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(7,), (3, 3), (2, 9), (9, 2), (8, 1, 2, 3), (2, 3, 3, 3), (1, 5)])
def test_muon_takes_filters_as_matrices_and_other_parameters_as_sgd_nesterov(shape, dtype, backend):
    rng = np.random.default_rng(0)
    w, dw, velocity = rng.standard_normal((3, *shape))
    config = {"learning_rate": 0.3, "momentum": 0.8, "weight_decay": 0.1, "velocity": velocity}
    expected = formula_nesterov(w * (1 - 0.3 * 0.1), dw, config) if len(shape) < 2 else formula_muon(w, dw, config)
    own = uploaded(config, backend, dtype)
    next_w, _ = muon(backend.asarray(w, dtype), backend.asarray(dw, dtype), own)
    assert_array(next_w, expected[0], backend, dtype)
    assert_array(own["velocity"], expected[1]["velocity"], backend, dtype)


@pytest.mark.parametrize("where", [True, False])
def test_a_condition_on_the_device_decides_whether_a_step_is_taken(case, where, backend):
    rule, formula, config = case
    own = uploaded(config, backend, "float64")
    condition = backend.xp.asarray(where, device=backend.device)
    w, _ = rule(backend.asarray(W), backend.asarray(DW), own, where=condition)
    expected, remembered = formula(W, DW, config) if where else (W, config)
    assert_array(w, expected, backend, "float64")
    for name in remembered:
        np.testing.assert_allclose(to_host(own[name]), remembered[name], rtol=1e-12 if where else 0)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_element_of_a_large_array_is_updated(name):
    """On NumPy they are updated in blocks, which must cover every element."""
    rule, formula, config = CASES[name]
    rng = np.random.default_rng(0)
    w, dw = rng.standard_normal((2, 123_457))
    config = {k: np.abs(rng.standard_normal(w.shape)) if isinstance(v, np.ndarray) else v for k, v in config.items()}
    expected, _ = formula(w, dw, config)
    np.testing.assert_allclose(rule(w.copy(), dw, config, in_place=True)[0], expected, rtol=1e-12)


def test_non_contiguous_arrays_are_updated_in_place(case):
    rule, formula, config = case
    w, dw = np.zeros((2 * N, D)), np.zeros((D, N))
    w[::2], dw[...] = W, DW.T
    expected, _ = formula(W, DW, config)
    rule(w[::2], dw.T, uploaded(config, __import__("xpconv").get_backend("numpy"), "float64"), in_place=True)
    np.testing.assert_allclose(w[::2], expected, rtol=1e-12)
    assert not w[1::2].any()


def test_a_gradient_of_another_shape_is_refused(case):
    with pytest.raises(ArgumentError, match=r"dw has shape \(5, 4\); expected that of w, \(4, 5\)"):
        case[0](W, DW.T)


@pytest.mark.torch
@pytest.mark.parametrize("weight_decay", [None, 0.0, 0.5])
@pytest.mark.parametrize("name", [name for name in UPDATE_RULES if name not in ("lion", "muon")])
def test_ten_steps_equal_those_of_torch(name, weight_decay):
    torch = pytest.importorskip("torch")
    w = torch.tensor(W.copy(), requires_grad=True)
    make, options = {
        "sgd": (torch.optim.SGD, {"lr": 1e-2}),
        "sgd_momentum": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
        "sgd_nesterov": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
        "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2}),
        "adam": (torch.optim.Adam, {}),
        "adamw": (torch.optim.AdamW, {}),
    }[name]
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    optimizer, ours, config = make([w], **options, **decay), W.copy(), dict(decay)
    for step in range(10):
        gradient = np.sin(DW * (step + 1))
        w.grad = torch.tensor(gradient)
        optimizer.step()
        ours, config = UPDATE_RULES[name](ours, gradient, config)
    np.testing.assert_allclose(ours, w.detach().numpy(), rtol=1e-10)


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(4, 5), (6, 2)])
def test_muon_takes_the_steps_of_torch(shape):
    """PyTorch computes these in bfloat16, and lays weights out as (outputs, inputs)."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    ours, config = rng.standard_normal(shape), {"learning_rate": 0.1, "weight_decay": 0.5}
    w = torch.tensor(ours.T.copy(), requires_grad=True)
    optimizer = torch.optim.Muon([w], lr=0.1, weight_decay=0.5, adjust_lr_fn="original")
    for _ in range(3):
        gradient = rng.standard_normal(shape)
        w.grad = torch.tensor(gradient.T.copy())
        optimizer.step()
        ours, config = muon(ours, gradient, config)
    np.testing.assert_allclose(ours, w.detach().numpy().T, atol=0.02)


@pytest.mark.parametrize("size", [1e20, 5e20])
def test_adam_moves_a_parameter_again_after_a_huge_finite_gradient(backend, size):
    """The square of the gradient overflows float32; its share of the average does not."""
    w, huge = (backend.asarray(np.full(3, value), "float32") for value in (0.0, size))
    w, config = adam(w, huge)
    before = backend.to_host(w).copy()
    w, config = adam(w, backend.xp.ones_like(w), config)
    assert np.isfinite(backend.to_host(config["v"])).all()
    assert (backend.to_host(w) < before).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rule", UPDATE_RULES.values(), ids=UPDATE_RULES)
def test_options_may_be_numpy_scalars(rule, backend, dtype):
    w, dw = (backend.asarray(np.array([1.0, -2.0]), dtype) for _ in range(2))
    new, config = rule(w, dw, {"learning_rate": np.float32(0.25)})
    assert_array(new, backend.to_host(rule(w, dw, {"learning_rate": 0.25})[0]), backend, dtype)
    assert type(config["learning_rate"]) is float


@pytest.mark.parametrize(
    ("rule", "option", "text"),
    [
        (sgd, {"learning_rate": None}, "learning_rate is None; expected a number"),
        (sgd_momentum, {"momentum": 1.0}, "momentum is 1.0; expected 0 or more and below 1"),
        (rmsprop, {"decay_rate": -0.1}, "decay_rate is -0.1; expected 0 or more and below 1"),
        (adam, {"beta1": True}, "beta1 is True; expected a number"),
        (adam, {"beta2": 1}, "beta2 is 1; expected 0 or more and below 1"),
        (adam, {"t": -1}, "t is -1; expected a finite number, 0 or more"),
        (adam, {"t": float("nan")}, "t is nan; expected a finite number, 0 or more"),
        (adam, {"epsilon": float("nan")}, "epsilon is nan; expected a finite number, 0 or more"),
        (rmsprop, {"epsilon": float("inf")}, "epsilon is inf; expected a finite number, 0 or more"),
        (sgd, {"learning_rate": float("nan")}, "learning_rate is nan; expected a finite number, 0 or more"),
        (sgd, {"learning_rate": float("-inf")}, "learning_rate is -inf; expected a finite number, 0 or more"),
        (sgd, {"learning_rate": -0.1}, "learning_rate is -0.1; expected a finite number, 0 or more"),
        (sgd, {"learning_rate": 10**400}, "learning_rate is 10+; expected a finite number, 0 or more"),
    ],
)
def test_invalid_options_are_refused_by_name(rule, option, text):
    w = np.ones(2)
    with pytest.raises(ArgumentError if "0 or more" in text else ArgumentTypeError, match=text):
        rule(w, w, option)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("rule", "config"),
    [
        ("sgd_momentum", {}),
        ("rmsprop", {"decay_rate": 0.5}),
        ("adam", {}),
        ("adam", {"beta2": 0.5}),
        ("adamw", {}),
        ("sgd_nesterov", {}),
        ("lion", {"beta2": 0.5}),
        ("muon", {}),
    ],
)
def test_averages_of_vanished_gradients_are_never_denormal(rule, config, dtype, backend):
    w, zero = (backend.asarray(np.full(5, value), dtype) for value in (1.0, 0.0))
    scales = np.array([1e-3, -1e-3, 1e-30, -1e-30, 1.0])
    w, config = UPDATE_RULES[rule](w, backend.asarray(scales, dtype), dict(config), in_place=True)
    smallest = np.finfo(dtype).smallest_normal
    averages = [name for name in ("velocity", "cache", "m", "v") if name in config]
    for _ in range(2000):
        UPDATE_RULES[rule](w, zero, config, in_place=True)
        values = np.abs([backend.to_host(config[name]) for name in averages])
        assert ((values == 0) | (values >= smallest)).all()
    if dtype == "float32" and config.get("beta2") != 0.999:
        assert not backend.to_host(config[averages[-1]]).any()


@pytest.mark.parametrize("name", ["w", "velocity"])
def test_arrays_that_cannot_be_updated_in_place_are_named(name):
    arrays = {"w": np.ones(2), "velocity": np.ones(2)}
    arrays[name].flags.writeable = False
    with pytest.raises(ArgumentError, match=f"^{name} is read-only; expected an array that can be updated in place"):
        UPDATE_RULES["sgd_momentum"](arrays["w"], np.ones(2), {"velocity": arrays["velocity"]}, in_place=True)
    UPDATE_RULES["sgd_momentum"](arrays["w"], np.ones(2), {"velocity": arrays["velocity"]})
