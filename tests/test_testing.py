"""Checks of gradients and equivalence: correct functions pass, and broken ones are caught."""

import sys
from typing import NamedTuple

import array_api_compat
import numpy as np
import pytest

from xpconv import layers
from xpconv.backend import get_backend, library_of
from xpconv.errors import ArgumentError, ArgumentTypeError, BackendUnavailableError
from xpconv.testing import (
    check_equivalence,
    check_gradient,
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    rel_error,
)

STRICT = ("array_api_strict", "array_api_strict:device1")


class Outputs(NamedTuple):
    scores: object
    loss: object


def affine_forward(x, w, b):
    out = x @ w
    return out if b is None else out + b, (x, w, b)


def affine_backward(dout, cache):
    x, w, b = cache
    xp = array_api_compat.array_namespace(dout)
    return dout @ w.T, x.T @ dout, None if b is None else xp.sum(dout, axis=0)


def relu_forward(x):
    xp = array_api_compat.array_namespace(x)
    return xp.where(x > 0, x, xp.zeros_like(x)), x > 0


def relu_backward(dout, mask):
    xp = array_api_compat.array_namespace(dout)
    return xp.where(mask, dout, xp.zeros_like(dout))


def affine_inputs(backend=None):
    rng = np.random.default_rng(3)
    asarray = (backend or get_backend("numpy")).asarray
    return {
        "x": asarray(rng.normal(size=(4, 5))),
        "w": asarray(rng.normal(size=(5, 3))),
        "b": asarray(rng.normal(size=3)),
    }


def broken(position, change):
    """Return affine's backward pass with one gradient changed."""

    def backward(dout, cache):
        gradients = list(affine_backward(dout, cache))
        gradients[position] = change(gradients[position])
        return tuple(gradients)

    return backward


# ---- rel_error


def test_rel_error_is_relative_to_both_magnitudes():
    assert rel_error([1.0, 3.0], [1.0, 1.0]) == 0.5


def test_rel_error_has_a_floor_so_that_zeros_do_not_divide():
    assert rel_error(np.zeros(2), np.zeros(2)) == 0
    assert rel_error(0.0, 1e-10) == pytest.approx(1e-2)


def test_rel_error_shows_nan_and_takes_empty_arrays_scalars_and_unsigned_numbers():
    assert np.isnan(rel_error([np.nan], [1.0]))
    assert rel_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0
    assert rel_error(np.float64(2), 2.0) == 0
    assert rel_error(np.array([1], np.uint8), np.array([3], np.uint8)) == 0.5


def test_rel_error_compares_across_devices(backend):
    assert rel_error(backend.asarray([1.0, 2.0]), np.array([1.0, 2.0])) == 0


def test_rel_error_refuses_shapes_that_would_broadcast():
    with pytest.raises(ArgumentError, match=r"a has shape \(3, 1\) but b has \(3,\); expected equal shapes"):
        rel_error(np.zeros((3, 1)), np.zeros(3))


# ---- element by element


def test_numerical_gradient_of_a_scalar_function():
    x = np.arange(6.0).reshape(2, 3)
    grad = eval_numerical_gradient(lambda x: np.sum(x**3), x)
    assert grad.dtype == np.float64
    assert grad.shape == (2, 3)
    assert rel_error(grad, 3 * x**2) < 1e-2  # at 0 the difference is h squared
    np.testing.assert_allclose(grad, 3 * x**2, atol=1e-8)


def test_numerical_gradient_takes_losses_that_live_on_a_device(backend):
    grad = eval_numerical_gradient(lambda x: backend.xp.sum(backend.asarray(x) ** 2), np.array([1.0, -2.0]))
    np.testing.assert_allclose(grad, [2, -4], atol=1e-8)


def test_numerical_gradient_is_silent_unless_asked(capsys):
    eval_numerical_gradient(np.sum, np.ones(2))
    assert capsys.readouterr().out == ""
    eval_numerical_gradient(np.sum, np.ones(2), verbose=True)
    assert [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()] == ["(0,)", "(1,)"]


def test_numerical_gradient_of_an_array_function_weighs_outputs_by_df(backend):
    x, df = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])
    grad = eval_numerical_gradient_array(lambda x: backend.asarray(x) ** 2, x, backend.asarray(df))
    np.testing.assert_allclose(grad, 2 * x * df, atol=1e-8)
    assert grad.dtype == np.float64


def test_numerical_gradient_of_a_function_that_returns_its_argument():
    assert eval_numerical_gradient_array(lambda x: x, np.ones(3), np.ones(3)) == pytest.approx([1, 1, 1])


def test_numerical_gradients_leave_x_unchanged():
    x = np.random.default_rng(0).normal(size=(3, 3))
    before = x.copy()
    eval_numerical_gradient(np.sum, x)
    eval_numerical_gradient_array(np.exp, x, np.ones((3, 3)))
    assert np.array_equal(x, before)


@pytest.mark.parametrize(
    "evaluate",
    [
        eval_numerical_gradient,
        lambda f, x: eval_numerical_gradient_array(f, x, np.ones(2)),
    ],
)
def test_x_is_restored_when_the_function_raises(evaluate):
    def fails(x):
        raise RuntimeError("on purpose")

    x = np.array([1.0, 2.0])
    with pytest.raises(RuntimeError, match="on purpose"):
        evaluate(fails, x)
    assert x.tolist() == [1, 2]


@pytest.mark.parametrize(("x", "what"), [(np.arange(3), "int64"), ([1.0], "list")])
def test_numerical_gradient_refuses_dtypes_that_would_lose_a_small_step(x, what):
    with pytest.raises(ArgumentTypeError, match=f"x is {what}; expected a NumPy array of floats"):
        eval_numerical_gradient(np.sum, x)


# ---- random projection


def test_correct_gradients_pass_on_every_backend(backend):
    assert check_gradient(affine_forward, affine_backward, affine_inputs(backend)) < 1e-8


def test_inputs_may_be_a_sequence_and_missing():
    x, w, _ = affine_inputs().values()
    assert check_gradient(affine_forward, affine_backward, [x, w, None]) < 1e-8


def test_inputs_are_not_changed(backend):
    inputs = affine_inputs(backend)
    before = {name: np.array(backend.to_host(x)) for name, x in inputs.items()}
    check_gradient(affine_forward, affine_backward, inputs)
    for name, x in inputs.items():
        assert np.array_equal(backend.to_host(x), before[name])


def test_the_same_rng_gives_the_same_error():
    errors = [check_gradient(affine_forward, affine_backward, affine_inputs(), rng=5) for _ in range(2)]
    assert errors[0] == errors[1]


def test_a_generator_is_drawn_from():
    rng = np.random.default_rng(1)
    check_gradient(affine_forward, affine_backward, affine_inputs(), rng=rng)
    assert rng.random() != np.random.default_rng(1).random()


def test_a_scalar_output_may_be_a_number():
    check_gradient(lambda x: (float(np.sum(x**2)), x), lambda dout, x: 2 * x * dout, [np.arange(1.0, 4)])


@pytest.mark.parametrize("name", ["x", "w", "b"])
def test_a_wrong_gradient_is_caught_and_named(backend, name):
    position = "xwb".index(name)
    with pytest.raises(
        AssertionError,
        match=rf"gradient of {name} is wrong: .* slope \S+ but backward gives \S+: "
        r"they differ by \S+e\S+ of .* \(tolerance 1e-06\)",
    ):
        check_gradient(affine_forward, broken(position, lambda g: g * 1.0001), affine_inputs(backend))


def test_one_wrong_element_is_caught():
    def change(gradient):
        gradient = gradient.copy()
        gradient[0, 0] += 0.01
        return gradient

    with pytest.raises(AssertionError, match="gradient of w is wrong"):
        check_gradient(affine_forward, broken(1, change), affine_inputs())


def test_zero_and_nan_gradients_are_caught():
    for value in (0.0, np.nan):
        with pytest.raises(AssertionError, match="gradient of x is wrong"):
            check_gradient(affine_forward, broken(0, lambda g, value=value: np.full_like(g, value)), affine_inputs())


def test_a_nan_forward_pass_is_caught():
    inputs = affine_inputs()
    inputs["x"][0, 0] = np.nan
    with pytest.raises(AssertionError, match=r"gradient of x is wrong.*nan"):
        check_gradient(affine_forward, affine_backward, inputs)


def test_rounding_does_not_fail_a_gradient_that_is_truly_zero():
    def forward(x):  # a shift of x changes nothing but the last bits
        centred = x - x.mean()
        return (centred + 100) * np.ones(4), centred

    check_gradient(lambda shift: (forward(np.arange(4.0) + shift)[0], shift), lambda dout, s: 0 * s, [np.ones(())])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda g: g.astype(np.float32), r"float32 \(4, 5\) on numpy \(cpu\)"),
        (lambda g: g.ravel(), r"float64 \(20,\) on numpy \(cpu\)"),
        (lambda g: None, "a NoneType"),
        (
            lambda g: get_backend("array_api_strict").asarray(g),
            r"float64 \(4, 5\) on array_api_strict \(.*CPU_DEVICE.*\)",
        ),
    ],
)
def test_a_gradient_of_another_dtype_shape_or_library_is_caught(change, found):
    with pytest.raises(AssertionError, match=rf"gradient of x is {found}; expected float64 \(4, 5\) on numpy"):
        check_gradient(affine_forward, broken(0, change), affine_inputs())


def test_a_gradient_on_another_device_is_caught():
    here, elsewhere = map(get_backend, STRICT)
    with pytest.raises(AssertionError, match=r"gradient of w is .*device1.*; expected .*CPU_DEVICE"):
        check_gradient(affine_forward, broken(1, lambda g: elsewhere.asarray(here.to_host(g))), affine_inputs(here))


def test_a_gradient_where_none_is_expected_is_caught():
    x, w, b = affine_inputs().values()
    with pytest.raises(AssertionError, match=r"gradient of b is float64 \(3,\).*; expected a NoneType"):
        check_gradient(affine_forward, broken(2, lambda g: b), [x, w, None])


def test_a_missing_gradient_is_caught():
    with pytest.raises(AssertionError, match="backward gave 2 gradients for 3 inputs: x, w, b"):
        check_gradient(affine_forward, lambda dout, cache: affine_backward(dout, cache)[:2], affine_inputs())


def test_wrt_leaves_the_other_inputs_unchecked():
    inputs, wrong_x = affine_inputs(), broken(0, lambda g: g * 2)
    assert check_gradient(affine_forward, wrong_x, inputs, wrt=["w", "b"]) < 1e-8
    with pytest.raises(ArgumentError, match="wrt has 'W'; expected names of inputs: x, w, b"):
        check_gradient(affine_forward, affine_backward, inputs, wrt=["W"])


def test_nothing_to_check_is_an_error():
    with pytest.raises(ArgumentError, match="no array to check"):
        check_gradient(affine_forward, affine_backward, affine_inputs(), wrt=[])


def test_float32_inputs_are_refused_with_the_cast_that_helps(backend):
    inputs = affine_inputs(backend)
    inputs["w"] = backend.asarray(inputs["w"], dtype="float32")
    with pytest.raises(
        ArgumentTypeError,
        match=r"w is float32 \(5, 3\); expected a float64 array.*"
        r"get_backend\(\).asarray\(w, dtype='float64'\)",
    ):
        check_gradient(affine_forward, affine_backward, inputs)


def test_inputs_without_names_are_numbered():
    with pytest.raises(AssertionError, match="gradient of input 0 is wrong"):
        check_gradient(
            lambda *inputs: affine_forward(*inputs), broken(0, lambda g: 2 * g), list(affine_inputs().values())
        )


def test_relu_passes_far_from_its_kinks_and_near_them(backend):
    x = np.random.default_rng(0).normal(size=(50, 40))
    x[0, 0] = 1e-6  # within reach of some directions, so that another has to be drawn
    assert check_gradient(relu_forward, relu_backward, [backend.asarray(x)]) < 1e-6


def test_another_direction_is_drawn_if_a_kink_lies_between_the_points():
    steps = []

    def forward(x):
        steps.append(x)
        return relu_forward(x)

    x = np.array([0.5e-6, 1.0])  # the first direction leads across 0
    assert check_gradient(forward, relu_backward, [x]) < 1e-6
    assert len(steps) > 5  # one pass for the output, then four a direction


def test_kinks_that_no_direction_avoids_are_reported():
    x = np.full(200, 1e-9)
    with pytest.raises(AssertionError, match=r"gradient of x cannot be checked: .*from h = 1e-06 down.*kinks"):
        check_gradient(relu_forward, relu_backward, [x])


def test_error_mentions_values_exactly_at_a_kink():
    with pytest.raises(AssertionError, match="exactly at a kink"):
        check_gradient(relu_forward, relu_backward, [np.zeros(3)])


# ---- equivalence


def test_equivalent_outputs_pass_and_are_reported(backend):
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

    def fn(x, options):
        xp = array_api_compat.array_namespace(x)
        return {"outputs": Outputs(x * options["scale"][0], xp.sum(x * x)), "rest": [None, "text", 3, True, x > 0]}

    report = check_equivalence(fn, x, {"scale": (x,)}, backends=[backend])
    row = report.rows[-1]
    assert row.backend == str(backend)
    assert row.library == backend.library
    assert row.device == str(backend.device)
    assert row.dtypes == "bool, float32"
    assert row.shapes_match
    assert report.max_difference == row.max_relative < 1e-6
    assert row.max_absolute < 1e-5


def test_report_prints_as_a_table():
    report = check_equivalence(lambda x: (x / 3, None), np.ones(2), backends=STRICT)
    header, *lines = str(report).splitlines()
    assert header.split("  ")[0].strip() == "backend"
    assert [line.split()[0] for line in lines] == ["numpy", *STRICT]
    assert "numpy (reference)" in lines[0]
    assert "Device('device1')" in lines[2]
    assert all("float64" in line and "match" in line for line in lines)


def test_the_backend_is_selected_while_the_function_runs():
    before, seen = get_backend(), []
    check_equivalence(lambda: seen.append(str(get_backend())), backends=STRICT)
    assert seen == ["numpy", *STRICT]
    assert get_backend() == before


def test_nested_arrays_are_moved_and_other_arguments_passed_unchanged():
    def fn(nested, number, text):
        assert (number, text) == (3, "same")
        assert library_of(nested["a"][0].scores) == get_backend().library
        assert isinstance(nested["a"], list)
        return nested

    check_equivalence(fn, {"a": [Outputs(np.ones(2), 1.5)], "t": (np.ones(1),)}, 3, "same", backends=STRICT)


def test_arguments_are_copied_so_that_functions_may_work_in_place(backend):
    def fn(x):
        x += 1
        return x

    x = np.zeros(3)
    assert check_equivalence(fn, x, backends=["numpy", backend]).max_difference == 0
    assert x.tolist() == [0, 0, 0]


def test_another_reference_may_be_chosen():
    report = check_equivalence(lambda x: x + 1, np.ones(2), backends=["numpy"], reference=get_backend(STRICT[1]))
    assert report.reference == STRICT[1]
    assert [row.backend for row in report.rows] == [STRICT[1], "numpy"]


def test_equal_infinities_and_nans_are_no_difference():
    report = check_equivalence(lambda x: x, np.array([np.inf, -np.inf, np.nan, 1]), backends=STRICT)
    assert report.max_difference == 0


def test_empty_and_zero_dimensional_outputs_are_compared():
    assert check_equivalence(lambda x: (x[:0], 2 * x[0, ...], 1.5), np.ones(3), backends=STRICT).max_difference == 0


def on(library, value, otherwise):
    """Return a value on one library and another elsewhere: a layer that is wrong there."""
    return value if get_backend().library == library else otherwise


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 5.0, 1 + 1e-9])
def test_another_value_is_caught(wrong):
    with pytest.raises(AssertionError, match=r"strict: output\[1\] differs by .*at most 1e-10\n(.*\n)*backend"):
        check_equivalence(lambda x: (x, x * on("array_api_strict", float(wrong), 1.0)), np.ones(2))


def test_tolerance_follows_the_dtype_unless_given():
    def fn(x):
        return x * on("array_api_strict", 1 + 1e-5, 1.0)

    assert check_equivalence(fn, np.ones(2, np.float32)).max_difference > 1e-6
    assert check_equivalence(fn, np.ones(2), rtol=1e-4).max_difference == pytest.approx(1e-5)
    check_equivalence(fn, np.ones(2), atol=1e-4)
    with pytest.raises(AssertionError, match=r"output differs by 1.00e-05, 1.00e-05 of its largest magnitude"):
        check_equivalence(fn, np.ones(2))
    with pytest.raises(AssertionError, match="expected at most 0e\\+00"):
        check_equivalence(lambda x: x + on("array_api_strict", 1, 0), np.arange(3))


def test_another_dtype_is_caught():
    def fn(x):
        xp = array_api_compat.array_namespace(x)
        return xp.astype(x, on("array_api_strict", xp.float32, xp.float64))

    with pytest.raises(
        AssertionError,
        match=r"array_api_strict: output is float32 \(2,\); "
        r"the reference gives float64 \(2,\)",
    ):
        check_equivalence(fn, np.ones(2))


def test_another_shape_is_caught_and_shown_in_the_table():
    def fn(x):
        return {"dw": on("array_api_strict", x[:1, ...], x)}

    with pytest.raises(AssertionError, match=r"output\['dw'\] is float64 \(1,\); the reference gives (.*\n)*.*DIFFER"):
        check_equivalence(fn, np.ones(2))


def test_outputs_of_another_library_are_caught():
    with pytest.raises(
        AssertionError,
        match=r"array_api_strict: output\.loss is on numpy \(cpu\); expected "
        r"array_api_strict \(.*CPU_DEVICE.*\), as the inputs are",
    ):
        check_equivalence(lambda x: Outputs(x, np.ones(2)), np.ones(2))


def test_outputs_on_another_device_are_caught():
    def fn(x):
        xp = array_api_compat.array_namespace(x)
        return xp.ones((2,)) if library_of(x) == "array_api_strict" else np.ones(2)  # forgets x's device

    check_equivalence(fn, np.ones(2), backends=STRICT[:1])
    with pytest.raises(AssertionError, match=r"device1: output is on .*CPU_DEVICE.*; expected .*device1"):
        check_equivalence(fn, np.ones(2), backends=STRICT)


def test_another_structure_is_caught():
    with pytest.raises(AssertionError, match=r"array_api_strict gives output; the reference gives output\[0\]"):
        check_equivalence(lambda x: on("array_api_strict", x, (x,)), np.ones(2))


@pytest.mark.parametrize(("there", "here"), [(None, 1.0), (1.0, None), ("a", "b")])
def test_none_where_a_value_is_expected_is_caught(there, here):
    with pytest.raises(AssertionError, match=r"array_api_strict: output (is a|differs)"):
        check_equivalence(lambda: on("array_api_strict", there, here))


def test_a_number_read_back_where_others_keep_an_array_is_caught():
    with pytest.raises(AssertionError, match=r"output is a float; the reference gives float64 \(\)"):
        check_equivalence(lambda x: on("array_api_strict", 2.0, x.sum() if library_of(x) == "numpy" else x), np.ones(2))


def test_an_exception_says_on_which_backend_it_was_raised():
    with pytest.raises(IndexError) as caught:
        check_equivalence(lambda x: x[1], np.ones((2, 2)))
    assert caught.value.__notes__ == ["raised while check_equivalence ran the function on array_api_strict"]


def test_a_backend_that_cannot_run_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendUnavailableError, match="cupy"):
        check_equivalence(lambda x: x, np.ones(2), backends=["cupy:63"])


@pytest.mark.torch
def test_torch_dtypes_have_numpys_names():
    pytest.importorskip("torch")
    report = check_equivalence(lambda x: x @ x, np.ones((3, 3), np.float32), backends=["torch"])
    assert report.rows[1].library == "torch"
    assert report.rows[1].dtypes == report.rows[0].dtypes == "float32"


def test_a_transposed_gradient_is_caught_though_the_arguments_come_from_the_same_seed():
    def forward(x, w):
        return x @ w, (x, w)

    def backward(dout, cache):
        x, w = cache
        return dout @ w.T, dout.T @ x

    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 4)), rng.standard_normal((4, 4))
    with pytest.raises(AssertionError, match="gradient of w"):
        check_gradient(forward, backward, {"x": x, "w": w})


# ---- further cases


def test_a_correct_gradient_of_zero_has_no_error():
    assert check_gradient(layers.relu_forward, layers.relu_backward, [-np.ones(3)]) == 0.0


def test_a_layer_that_writes_into_its_inputs_is_judged_by_its_results():
    def wrong(dout, cache):
        gradient = 3 * dout
        dout *= 1.5
        return gradient

    def right(dout, cache):
        dout *= 2
        return dout

    def in_place(x):
        x *= 2
        return x, None

    x = np.ones((2, 3))
    with pytest.raises(AssertionError, match="gradient of x is wrong"):
        check_gradient(lambda x: (2 * x, None), wrong, [x])
    assert check_gradient(lambda x: (2 * x, None), right, [x]) < 1e-6
    assert check_gradient(in_place, right, [x]) < 1e-6
    assert np.all(x == 1)


def test_a_reused_output_buffer_does_not_give_slope_0():
    buffer = np.empty((2, 3))

    def forward(x):
        return np.multiply(2, x, out=buffer), None

    assert check_gradient(forward, lambda dout, cache: 2 * dout, [np.ones((2, 3))]) < 1e-6


def test_relative_errors_of_short_floats_are_those_of_the_formula():
    a, b = np.array([60000], "float16"), np.array([40000], "float16")
    assert rel_error(a, b) == pytest.approx(0.2)
    assert rel_error(np.zeros(3, "float16"), np.zeros(3, "float16")) == 0


def test_integers_are_compared_as_integers():
    def large(x):
        return x + (1 if library_of(x) == "array_api_strict" else 0)

    with pytest.raises(AssertionError):
        check_equivalence(large, np.array([2**60]), backends=["array_api_strict"])
