"""The course's Solver: its draws, its lines, its errors; it trains a student's own net too."""

import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers import assert_copies
from xpconv import ConvNet, load_model
from xpconv.cs231n import optim
from xpconv.cs231n.classifiers.fc_net import FullyConnectedNet, TwoLayerNet
from xpconv.cs231n.solver import Solver
from xpconv.errors import ArgumentError, ArgumentTypeError


class StudentNet:
    """A linear softmax classifier in plain NumPy, with float losses."""

    def __init__(self, D, C, reg=0.0):
        self.params = {"W": 0.01 * np.random.randn(D, C), "b": np.zeros(C)}
        self.reg = reg

    def loss(self, X, y=None):
        X = X.reshape(len(X), -1)
        scores = X.dot(self.params["W"]) + self.params["b"]
        if y is None:
            return scores
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        loss = float(-np.log(p[np.arange(len(y)), y]).mean()) + 0.5 * self.reg * float(np.sum(self.params["W"] ** 2))
        p[np.arange(len(y)), y] -= 1
        p /= len(y)
        return loss, {"W": X.T.dot(p) + self.reg * self.params["W"], "b": p.sum(axis=0)}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    X = rng.standard_normal((90, 3, 2, 2))
    X[np.arange(90), y] += 2
    return {"X_train": X[:60], "y_train": y[:60], "X_val": X[60:], "y_val": y[60:], "X_test": X[:5], "y_test": y[:5]}


def course_run(model, data, *, num_epochs, batch_size, num_train_samples, num_val_samples, learning_rate, lr_decay):
    """Run gradient descent with the draws where the course has them; return losses and accuracies."""

    def accuracy(X, y, num_samples):
        if num_samples is not None and len(X) > num_samples:
            chosen = np.random.choice(len(X), num_samples)
            X, y = X[chosen], y[chosen]
        return float(np.mean(np.argmax(model.loss(X), axis=1) == y))

    X, y = data["X_train"], data["y_train"]
    per_epoch = max(len(X) // batch_size, 1)
    losses, checks = [], []
    for t in range(num_epochs * per_epoch):
        chosen = np.random.choice(len(X), batch_size)
        loss, grads = model.loss(X[chosen], y[chosen])
        losses.append(float(loss))
        model.params = {name: w - learning_rate * grads[name] for name, w in model.params.items()}
        end = (t + 1) % per_epoch == 0
        learning_rate *= lr_decay if end else 1
        if t == 0 or end:
            checks.append((accuracy(X, y, num_train_samples), accuracy(data["X_val"], data["y_val"], num_val_samples)))
    return losses, checks


MODELS = {
    "student": lambda: StudentNet(12, 3, reg=0.1),
    "two-layer": lambda: TwoLayerNet(12, 8, 3, weight_scale=0.1, reg=0.1),
    "dropout": lambda: FullyConnectedNet([8], 12, 3, dropout_keep_ratio=0.7, weight_scale=0.1, dtype=np.float64),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("samples", [(20, 10), (1000, None)])
def test_draws_come_in_the_courses_order_from_the_global_state(data, make, samples):
    options = {"num_epochs": 3, "batch_size": 20, "num_train_samples": samples[0], "num_val_samples": samples[1]}
    np.random.seed(231)
    losses, checks = course_run(make(), data, learning_rate=0.1, lr_decay=0.9, **options)
    after = np.random.rand()

    np.random.seed(231)
    solver = Solver(make(), data, optim_config={"learning_rate": 0.1}, lr_decay=0.9, verbose=False, **options)
    solver.train()
    assert after == np.random.rand()
    np.testing.assert_allclose(solver.loss_history, losses, rtol=1e-12)
    assert list(zip(solver.train_acc_history, solver.val_acc_history, strict=True)) == checks


def test_a_students_net_learns(data):
    np.random.seed(0)
    net = StudentNet(12, 3)
    solver = Solver(
        net, data, update_rule="adam", optim_config={"learning_rate": 1e-2}, num_epochs=20, batch_size=20, verbose=False
    )
    solver.train()
    assert solver.best_val_acc > 0.8
    assert_copies(net.params, solver.best_params)
    assert all(type(loss) is float for loss in solver.loss_history)


def test_results_have_the_courses_names(data):
    solver = Solver(
        TwoLayerNet(12, 8, 3),
        data,
        update_rule="sgd_momentum",
        optim_config={"learning_rate": 0.1},
        lr_decay=0.5,
        num_epochs=2,
        batch_size=30,
        verbose=False,
    )
    solver.train()
    assert solver.epoch == 2
    assert len(solver.loss_history) == 4
    assert len(solver.train_acc_history) == len(solver.val_acc_history) == 3
    assert solver.best_val_acc == max(solver.val_acc_history)
    assert set(solver.best_params) == {"W1", "b1", "W2", "b2"}
    assert solver.optim_configs["W1"]["learning_rate"] == 0.1 * 0.5**2
    assert solver.optim_configs["W1"]["velocity"].shape == (12, 8)
    assert solver.check_accuracy(data["X_val"], data["y_val"]) == solver.best_val_acc


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_are_the_published_ones(data, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    np.random.seed(0)
    solver = Solver(TwoLayerNet(12, 8, 3), data, num_epochs=2, batch_size=20, print_every=2)
    solver.train()
    losses, accuracies = solver.loss_history, zip(solver.train_acc_history, solver.val_acc_history, strict=True)
    epochs = [f"(Epoch {i} / 2) train acc: {t:.6f}; val_acc: {v:.6f}" for i, (t, v) in enumerate(accuracies)]
    assert capsys.readouterr().out.splitlines() == [
        f"(Iteration 1 / 6) loss: {losses[0]:.6f}",
        epochs[0],
        f"(Iteration 3 / 6) loss: {losses[2]:.6f}",
        epochs[1],
        f"(Iteration 5 / 6) loss: {losses[4]:.6f}",
        epochs[2],
    ]


def test_silence_when_asked(data, capsys):
    Solver(TwoLayerNet(12, 8, 3), data, num_epochs=1, verbose=False).train()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 1}, 'Unrecognized arguments "learning_rate"; expected update_rule, optim_config'),
        ({"foo": 1, "rng": 0}, 'Unrecognized arguments "foo", "rng"'),
        ({"update_rule": "adamw"}, 'Invalid update_rule "adamw"; expected one of sgd, sgd_momentum, rmsprop, adam'),
    ],
)
def test_unknown_options_are_value_errors(data, options, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        Solver(TwoLayerNet(12, 8, 3), data, **options)
    assert isinstance(caught.value, ValueError)


def test_each_epoch_saves_a_model(data, tmp_path, capsys):
    net = FullyConnectedNet([8], 12, 3, normalization="batchnorm")
    name = tmp_path / "run"
    Solver(net, data, num_epochs=2, batch_size=30, checkpoint_name=str(name)).train()
    files = [f"{name}_epoch_{epoch}.safetensors" for epoch in range(3)]
    assert sorted(map(str, tmp_path.iterdir())) == files
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "checkpoint" in line] == [f'Saving checkpoint to "{file}"' for file in files]
    assert lines[-2].startswith("Saving checkpoint")
    assert lines[-1].startswith("(Epoch 2 / 2)")
    scores = load_model(files[2]).loss(data["X_val"])
    assert scores.shape == (30, 3)


def test_checkpoints_of_a_students_net_are_its_parameters(data, tmp_path):
    net = StudentNet(12, 3)
    solver = Solver(net, data, num_epochs=1, batch_size=60, verbose=False, checkpoint_name=str(tmp_path / "mine"))
    solver.train()
    saved = load_file(tmp_path / "mine_epoch_1.safetensors")
    assert sorted(saved) == ["W", "b"]
    for key, value in saved.items():
        np.testing.assert_array_equal(value, net.params[key])


def test_a_loss_that_explodes_warns_once_and_training_continues(data):
    class Exploding(StudentNet):
        def loss(self, X, y=None):
            if y is None:
                return super().loss(X)
            self.calls = getattr(self, "calls", 0) + 1
            loss, grads = super().loss(X, y)
            return (float("nan") if self.calls > 2 else loss), grads

    solver = Solver(Exploding(12, 3), data, num_epochs=4, batch_size=30, verbose=False)
    with pytest.warns(RuntimeWarning, match="the loss became nan at iteration 3: take a smaller learning_rate") as seen:
        solver.train()
    assert len(seen) == 1
    assert np.isfinite(solver.loss_history).tolist() == [True] * 2 + [False] * 6
    assert solver.epoch == 4


def test_nets_of_xpconv_train_too(data):
    net = ConvNet([4], input_dim=(3, 2, 2), num_classes=3, rng=0)
    solver = Solver(net, data, update_rule="adam", num_epochs=1, batch_size=20, verbose=False)
    solver.train()
    assert len(solver.loss_history) == 3


def test_single_steps_are_those_of_training(data):
    np.random.seed(231)
    trained = Solver(StudentNet(12, 3), data, num_epochs=1, batch_size=20, num_train_samples=None, verbose=False)
    trained.train()
    np.random.seed(231)
    stepped = Solver(StudentNet(12, 3), data, batch_size=20, verbose=False)
    for done in (1, 2, 3):
        stepped._step()
        assert stepped.loss_history == trained.loss_history[:done]
    for name, w in stepped.model.params.items():
        np.testing.assert_array_equal(w, trained.current()[0][name])


def test_parameters_of_integers_become_floats(data):
    net = StudentNet(12, 3)
    net.params["b"] = np.zeros(3, dtype=int)
    Solver(net, data, num_epochs=1, batch_size=30, optim_config={"learning_rate": 0.5}, verbose=False).train()
    assert net.params["b"].dtype == np.float64
    assert net.params["b"].any()


def test_a_missing_gradient_is_named(data):
    class Forgetful(StudentNet):
        def loss(self, X, y=None):
            result = super().loss(X, y)
            if y is not None:
                del result[1]["b"]
            return result

    with pytest.raises(ArgumentError, match="the model's loss returned no gradient for b; expected one for each"):
        Solver(Forgetful(12, 3), data, num_epochs=1, verbose=False).train()


def test_a_reset_written_as_the_courses_serves(data):
    class Own(Solver):
        def _reset(self):
            self.epoch, self.best_val_acc, self.best_params = 0, 0, {}
            self.loss_history, self.train_acc_history, self.val_acc_history = [], [], []
            self.optim_configs = {name: dict(self.optim_config) for name in self.model.params}

    solver = Own(StudentNet(12, 3), data, num_epochs=2, batch_size=20, verbose=False)
    solver.train()
    assert len(solver.loss_history) == 6


# ---- what notebooks override


def test_an_update_rule_assigned_to_optim_is_found(data, monkeypatch):
    def halving(w, dw, config=None):
        return w / 2, config

    monkeypatch.setattr(optim, "halving", halving, raising=False)
    monkeypatch.setattr(optim, "adam", halving)
    for rule in ("halving", "adam"):
        solver = Solver(StudentNet(12, 3), data, update_rule=rule, num_epochs=1, batch_size=60, verbose=False)
        before = solver.model.params["W"].copy()
        solver._step()
        np.testing.assert_array_equal(solver.model.params["W"], before / 2)


def test_subclasses_override_the_courses_methods_without_arguments(data, tmp_path):
    class Counting(Solver):
        def _reset(self):
            super()._reset()
            self.calls = {"reset": 1, "step": 0, "checkpoint": 0}

        def _step(self):
            self.calls["step"] += 1
            super()._step()

        def _save_checkpoint(self):
            self.calls["checkpoint"] += 1
            super()._save_checkpoint()

    np.random.seed(231)
    plain = Solver(StudentNet(12, 3), data, num_epochs=1, batch_size=20, verbose=False)
    plain.train()
    np.random.seed(231)
    name = str(tmp_path / "mine")
    solver = Counting(StudentNet(12, 3), data, num_epochs=1, batch_size=20, verbose=False, checkpoint_name=name)
    solver.train()
    assert solver.calls == {"reset": 1, "step": 3, "checkpoint": 2}
    assert solver.loss_history == plain.loss_history
    assert len(list(tmp_path.iterdir())) == 2


def test_a_step_written_as_the_courses_trains(data):
    class Own(Solver):
        def _step(self):
            chosen = np.random.choice(self.X_train.shape[0], self.batch_size)
            loss, grads = self.model.loss(self.X_train[chosen], self.y_train[chosen])
            self.loss_history.append(loss)
            for name, w in self.model.params.items():
                next_w, config = self.update_rule(w, grads[name], self.optim_configs[name])
                self.model.params[name], self.optim_configs[name] = next_w, config

    losses = []
    for kind in (Solver, Own):
        np.random.seed(231)
        solver = kind(StudentNet(12, 3), data, num_epochs=2, batch_size=20, verbose=False)
        solver.train()
        losses.append(solver.loss_history)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12)


def test_counts_may_be_whole_floats_and_numbers_arrays_of_one_element(data):
    net = TwoLayerNet(12, 8, 3, reg=np.array([0.5]))
    assert net.reg == 0.5
    solver = Solver(
        net,
        data,
        num_epochs=2.0,
        print_every=1e3,
        batch_size=30.0,
        optim_config={"learning_rate": np.array([0.1])},
        verbose=False,
    )
    solver.train()
    assert (solver.num_epochs, solver.print_every, len(solver.loss_history)) == (2, 1000, 4)
    with pytest.raises(ArgumentTypeError, match=r"num_epochs is '2'; expected a finite number above 0"):
        Solver(net, data, num_epochs="2")


def test_minibatches_may_be_larger_than_the_data_as_in_the_course(data):
    solver = Solver(TwoLayerNet(12, 8, 3), data, num_epochs=1, batch_size=1000, verbose=False)
    sizes, plain = [], solver.model.loss
    solver.model.loss = lambda X, y=None: sizes.append(len(X)) or plain(X, y)
    solver._step()
    assert sizes == [1000]


def test_options_assigned_later_may_be_whole_floats_and_arrays_of_one_element(data):
    losses = []
    for convert in (lambda value: value, lambda value: np.array([value])):
        np.random.seed(231)
        net = TwoLayerNet(12, 8, 3)
        net.reg = convert(0.5)
        solver = Solver(net, data, batch_size=30, verbose=False)
        solver.num_epochs, solver.print_every, solver.lr_decay = convert(2.0), convert(1e3), convert(0.9)
        for config in solver.optim_configs.values():
            config["learning_rate"] = convert(0.1)
        solver.train()
        assert net.reg == 0.5
        assert solver.learning_rate_history == pytest.approx([0.1, 0.1, 0.09, 0.09])
        losses.append(solver.loss_history)
    assert losses[0] == losses[1]
    with pytest.raises(ArgumentError, match="reg is -1; expected a finite number, 0 or more"):
        net.reg = np.array([-1])


def test_a_rule_of_the_notebook_may_keep_its_learning_rate_as_an_array(data):
    def rule(w, dw, config):
        return w - config["learning_rate"] * dw, {"learning_rate": np.array([0.1])}

    solver = Solver(TwoLayerNet(12, 8, 3), data, update_rule=rule, num_epochs=1, batch_size=30, verbose=False)
    for config in solver.optim_configs.values():
        config["learning_rate"] = 0.1
    solver.train()
    assert solver.learning_rate_history == [0.1, 0.1]
