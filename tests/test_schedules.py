"""Learning-rate schedules are pure functions from the step to a Python float."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.training.schedules import constant, cosine, one_cycle, step_decay, warmup

STEPS = st.integers(0, 10_000)
COUNTS = st.integers(1, 1000)
SCHEDULES = st.one_of(
    st.just(constant),
    st.builds(step_decay, COUNTS, st.floats(0, 1)),
    st.builds(cosine, COUNTS, st.floats(0, 1)),
    st.builds(
        one_cycle,
        COUNTS,
        peak=st.floats(0, 1),
        start=st.floats(0, 1),
        final=st.floats(0, 1),
        shape=st.sampled_from(["cosine", "linear"]),
    ),
    st.builds(warmup, COUNTS, st.builds(cosine, COUNTS)),
)


@given(SCHEDULES, STEPS)
def test_factors_are_reproducible_python_floats_from_0_to_1(schedule, step):
    factor = schedule(step)
    assert type(factor) is float
    assert 0 <= factor <= 1 + 1e-12
    assert schedule(step) == factor


@given(COUNTS, st.floats(0.01, 1), st.integers(1, 10))
def test_step_decay_multiplies_once_every_given_number_of_steps(every, factor, times):
    schedule, expected = step_decay(every, factor), 1.0
    for i in range(times):
        assert schedule(i * every) == schedule((i + 1) * every - 1) == pytest.approx(expected)
        expected *= factor


@given(st.integers(2, 1000), st.floats(0, 0.9))
def test_cosine_falls_from_1_to_its_final_factor_and_stays_there(total, final):
    schedule = cosine(total, final)
    factors = [schedule(step) for step in range(total + 1)]
    assert (factors[0], factors[-1]) == (1.0, pytest.approx(final, abs=1e-12))
    assert all(a > b for a, b in itertools.pairwise(factors))
    assert schedule(total + 5) == factors[-1]
    assert factors[total // 2] == pytest.approx((1 + final) / 2, abs=math.pi / total)
    assert factors[total // 3] + factors[total - total // 3] == pytest.approx(1 + final)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("options", [{}, {"peak": 0.5, "start": 0.2, "final": 0.01}, {"peak": 0.125}])
def test_one_cycle_has_the_factors_of_torch(shape, options):
    torch = pytest.importorskip("torch")
    schedule, optimizer = one_cycle(40, shape=shape, **options), torch.optim.SGD([torch.zeros(1)], lr=1.0)
    start, final = options.get("start", 0.04), options.get("final", 4e-6)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=40,
        pct_start=options.get("peak", 0.3),
        anneal_strategy="cos" if shape == "cosine" else "linear",
        cycle_momentum=False,
        div_factor=1 / start,
        final_div_factor=start / final,
    )
    for step in range(40):
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15)
        if step < 39:
            scheduler.step()
    assert schedule(1000) == pytest.approx(final)


@pytest.mark.parametrize("peak", [0, 0.3, 1])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_of_a_few_steps_reaches_the_full_learning_rate(total, peak):
    assert max(one_cycle(total, peak=peak, shape="linear")(step) for step in range(total)) > 0.4


@given(COUNTS, STEPS)
def test_warm_up_rises_linearly_to_the_next_schedule(steps, step):
    then = step_decay(7, 0.9)
    expected = then(step) * ((step + 1) / steps if step < steps else 1)
    assert warmup(steps, then)(step) == pytest.approx(expected)


def test_warm_up_of_no_steps_changes_nothing():
    assert [warmup(0)(step) for step in range(3)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: step_decay(0), "every is 0; expected an int, 1 or more"),
        (lambda: step_decay(1.5), "every is 1.5; expected an int, 1 or more"),
        (lambda: step_decay(1, -0.1), "factor is -0.1; expected a finite number, 0 or more"),
        (lambda: step_decay(1, math.nan), "factor is nan; expected a finite number, 0 or more"),
        (lambda: cosine(0), "total is 0; expected an int, 1 or more"),
        (lambda: cosine(5, 2.0), "final is 2.0; expected 0 to 1"),
        (lambda: one_cycle(0), "total is 0; expected an int, 1 or more"),
        (lambda: one_cycle(5, peak=1.5), "peak is 1.5; expected a number from 0 to 1"),
        (lambda: one_cycle(5, start="a"), "start is 'a'; expected a number from 0 to 1"),
        (lambda: one_cycle(5, shape="square"), "shape is 'square'; expected cosine or linear"),
        (lambda: warmup(-1), "steps is -1; expected an int, 0 or more"),
        (lambda: warmup(True), "steps is True; expected an int, 0 or more"),
    ],
)
def test_invalid_arguments_of_schedules_are_refused(make, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make()
