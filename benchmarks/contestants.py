"""The libraries measured. Each prepares a case as one function per pass, and one whose results are compared."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from benchmarks.cases import Case
from xpconv import ConvNet, Preprocessing, Solver, ThreeLayerConvNet, layers
from xpconv.backend import get_backend, to_host
from xpconv.backend._memory import peak_bytes
from xpconv.data import Batches
from xpconv.layers import reference
from xpconv.nn import Layer, ResNet, ResNet9
from xpconv.training._capture import captured_steps
from xpconv.training.optim import UPDATE_RULES, adam

Passes = dict[str, Callable[[], Any]]
PIXELS = 128.0, 64.0  # mean and standard deviation for normalising uint8 images
FORWARD, BOTH, UPDATE, STEP, EPOCH = "forward", "forward+backward", "update", "step", "epoch"


class Xpconv:
    """xpconv, on a backend."""

    def __init__(self, backend: str = "numpy") -> None:
        self.backend = get_backend(backend)
        self.functions: Any = layers

    def peak(self, call: Callable[[], Any]) -> int:
        """Return the peak memory of a call in bytes, beyond what was allocated before it."""
        return peak_bytes(self.backend, call) or 0

    def prepare(self, case: Case) -> tuple[Passes, Callable[[], list[Any]]]:
        """Return the passes to time, and a function that returns the results to compare."""
        arrays = {name: self.backend.asarray(a) for name, a in case.draw().items()}
        passes = getattr(self, case.kind)(arrays, **case.options)
        return passes, lambda: self.results(case, passes)

    def results(self, case: Case, passes: Passes) -> list[np.ndarray]:
        name = next(name for name in (BOTH, "check") if name in passes)
        return [to_host(a) for a in passes[name]() if a is not None]

    def _layer(self, name: str, inputs: list[Any], dout: Any, **options: Any) -> Passes:
        forward, backward = getattr(self.functions, f"{name}_forward"), getattr(self.functions, f"{name}_backward")

        def both() -> list[Any]:
            out, cache = forward(*inputs, **options)
            gradients = backward(dout, cache)
            return [out, *(gradients if isinstance(gradients, tuple) else (gradients,))]

        return {FORWARD: lambda: forward(*inputs, **options), BOTH: both}

    def conv(self, a: dict[str, Any], **options: Any) -> Passes:
        return self._layer("conv", [a["x"], a["w"], a["b"]], a["dout"], **options)

    def max_pool(self, a: dict[str, Any], **options: Any) -> Passes:
        return self._layer("max_pool", [a["x"]], a["dout"], **options)

    def avg_pool(self, a: dict[str, Any], **options: Any) -> Passes:
        return self._layer("avg_pool", [a["x"]], a["dout"], **options)

    def gelu(self, a: dict[str, Any]) -> Passes:
        return self._layer("gelu", [a["x"]], a["dout"])

    def silu(self, a: dict[str, Any]) -> Passes:
        return self._layer("silu", [a["x"]], a["dout"])

    def batchnorm(self, a: dict[str, Any]) -> Passes:
        return self._layer("batchnorm", [a["x"], a["gamma"], a["beta"]], a["dout"], train=True)

    def groupnorm(self, a: dict[str, Any], groups: int) -> Passes:
        return self._layer("groupnorm", [a["x"], a["gamma"], a["beta"]], a["dout"], groups=groups)

    def softmax(self, a: dict[str, Any]) -> Passes:
        return {BOTH: lambda: layers.softmax_loss(a["x"], a["y"])}

    def update(self, a: dict[str, Any], rule: str) -> Passes:
        w, config, step = self.backend.xp.asarray(a["w"], copy=True), {}, UPDATE_RULES[rule]
        return {UPDATE: lambda: step(w, a["dw"], config, in_place=True), "check": lambda: [step(a["w"], a["dw"])[0]]}

    def step(self, a: dict[str, Any], net: str) -> Passes:
        model = make_net(net, self.backend)
        configs: dict[str, dict[str, Any]] = {name: {} for name in model.params}
        first = {name: self.backend.xp.asarray(w, copy=True) for name, w in model.params.items()}

        def step() -> None:
            _, grads = model.loss(a["X"], a["y"])
            for name, w in model.params.items():
                adam(w, grads[name], configs[name], in_place=True)

        def check() -> list[Any]:
            model.params = {name: self.backend.xp.asarray(w, copy=True) for name, w in first.items()}
            loss, grads = model.loss(a["X"], a["y"])
            return [loss, *(grads[name] for name in sorted(grads))]

        return {STEP: step, "check": check}

    def captured_step(self, a: dict[str, Any], net: str, precision: str) -> Passes:
        """Return a Solver's step, replayed from a CUDA graph; tests compare its bits with those of ordinary steps."""
        data = {"X_train": a["X"], "y_train": a["y"], "X_val": a["X"], "y_val": a["y"]}
        options = {"update_rule": "adam", "batch_size": len(a["X"]), "verbose": False, "rng": 0}
        model = make_net(net, self.backend)
        model.precision = precision
        solver = Solver(model, data, **options)
        solver._batches = Batches(solver.X_train, solver.y_train, solver.sampler, self.backend, prefetch=0)
        solver._captured = captured_steps(solver, solver._batches, fail)

        def step() -> None:
            solver._take_step(solver._batches, need_images=False)

        for _ in range(4):  # two ordinary steps, the capture and a replay
            step()
        return {STEP: step, "check": list}

    def epoch(self, a: dict[str, Any], net: str, batch: int) -> Passes:
        model = make_net(net, self.backend)
        model.preprocessing = Preprocessing(*PIXELS)
        data = {"X_train": a["X"], "y_train": a["y"], "X_val": a["X"][:batch], "y_val": a["y"][:batch]}
        solver = Solver(
            model,
            data,
            update_rule="adam",
            batch_size=batch,
            num_epochs=1,
            num_train_samples=batch,
            verbose=False,
            rng=0,
        )
        return {EPOCH: solver.train, "check": list}


class Reference(Xpconv):
    """The loop implementations in xpconv.layers.reference."""

    def __init__(self) -> None:
        super().__init__("numpy")
        self.functions = reference


class Torch:
    """PyTorch, in eager mode."""

    def __init__(self, device: str = "cpu") -> None:
        import torch

        self.torch, self.device = torch, device
        self.F = torch.nn.functional

    def peak(self, call: Callable[[], Any]) -> int:
        cuda = self.torch.cuda
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        call()
        return int(cuda.max_memory_allocated() - before)

    def prepare(self, case: Case) -> tuple[Passes, Callable[[], list[Any]]]:
        arrays = {name: self.torch.tensor(a, device=self.device) for name, a in case.draw().items()}
        passes = getattr(self, case.kind)(arrays, **case.options)
        return passes, lambda: self.results(passes)

    def results(self, passes: Passes) -> list[np.ndarray]:
        name = next(name for name in (BOTH, "check") if name in passes)
        return [a.detach().cpu().numpy() for a in passes[name]()]

    def _layer(self, forward: Callable[..., Any], inputs: list[Any], dout: Any = None) -> Passes:
        leaves = [a.requires_grad_() for a in inputs]

        def plain() -> Any:
            with self.torch.no_grad():
                return forward(*leaves)

        def both() -> list[Any]:
            out = forward(*leaves)
            return [out, *self.torch.autograd.grad(out, leaves, dout)]

        return {FORWARD: plain, BOTH: both}

    def conv(self, a: dict[str, Any], **options: Any) -> Passes:
        return self._layer(lambda x, w, b: self.F.conv2d(x, w, b, **options), [a["x"], a["w"], a["b"]], a["dout"])

    def max_pool(self, a: dict[str, Any], kernel_size: int, stride: int) -> Passes:
        return self._layer(lambda x: self.F.max_pool2d(x, kernel_size, stride), [a["x"]], a["dout"])

    def avg_pool(self, a: dict[str, Any], kernel_size: int, stride: int) -> Passes:
        return self._layer(lambda x: self.F.avg_pool2d(x, kernel_size, stride), [a["x"]], a["dout"])

    def gelu(self, a: dict[str, Any]) -> Passes:
        return self._layer(self.F.gelu, [a["x"]], a["dout"])

    def silu(self, a: dict[str, Any]) -> Passes:
        return self._layer(self.F.silu, [a["x"]], a["dout"])

    def batchnorm(self, a: dict[str, Any]) -> Passes:
        mean, var = self.torch.zeros_like(a["gamma"]), self.torch.zeros_like(a["gamma"])
        return self._layer(
            lambda x, g, b: self.F.batch_norm(x, mean, var, g, b, training=True),
            [a["x"], a["gamma"], a["beta"]],
            a["dout"],
        )

    def groupnorm(self, a: dict[str, Any], groups: int) -> Passes:
        return self._layer(
            lambda x, g, b: self.F.group_norm(x, groups, g, b), [a["x"], a["gamma"], a["beta"]], a["dout"]
        )

    def softmax(self, a: dict[str, Any]) -> Passes:
        return {BOTH: self._layer(lambda x: self.F.cross_entropy(x, a["y"]), [a["x"]])[BOTH]}

    def update(self, a: dict[str, Any], rule: str) -> Passes:
        def make() -> tuple[Any, Any]:
            w = a["w"].clone().requires_grad_()
            w.grad = a["dw"]
            return w, {"adam": self.torch.optim.Adam, "adamw": self.torch.optim.AdamW}[rule]([w])

        _, optimizer = make()

        def check() -> list[Any]:
            w, optimizer = make()
            optimizer.step()
            return [w]

        return {UPDATE: optimizer.step, "check": check}

    def epoch(self, a: dict[str, Any], net: str, batch: int) -> Passes:
        mean, std = PIXELS
        minibatch: dict[str, Any] = {}
        step = self.step(minibatch, net)[STEP]

        def epoch() -> None:
            for _ in range(len(a["X"]) // batch):
                rows = self.torch.randint(len(a["X"]), (batch,), device=self.device)
                minibatch["X"], minibatch["y"] = (a["X"][rows].float() - mean) / std, a["y"][rows]
                step()

        return {EPOCH: epoch, "check": list}

    def captured_step(self, a: dict[str, Any], net: str, precision: str) -> Passes:
        """Return an ordinary step, which a captured one of xpconv is compared with."""
        return {STEP: self.step(a, net, precision)[STEP], "check": list}

    def step(self, a: dict[str, Any], net: str, precision: str = "full", **adam_options: Any) -> Passes:
        ours = make_net(net, "numpy")
        model = self.torch.nn.Sequential(*self._modules(ours.layers, ours.input_shape)).to(self.device)
        keys = dict(zip(ours.params, model.parameters(), strict=True))
        for key, p in keys.items():
            weight = ours.params[key]
            p.data = self.torch.tensor(weight.T.copy() if weight.ndim == 2 else weight, device=self.device)
        weights = [p for key, p in keys.items() if key[0] == "W"]
        others = [p for key, p in keys.items() if key[0] != "W"]
        # xpconv's L2 term covers only the weights.
        groups = [{"params": weights, "weight_decay": ours.reg}, {"params": others}]
        optimizer = self.torch.optim.Adam(groups, **adam_options)

        def gradients() -> Any:
            optimizer.zero_grad()
            with self.torch.autocast(self.device, self.torch.float16, enabled=precision == "mixed"):
                loss = self.F.cross_entropy(model(a["X"]), a["y"])
            loss.backward()
            return loss

        def step() -> None:
            gradients()
            optimizer.step()

        first = {key: p.detach().clone() for key, p in keys.items()}

        def check() -> list[Any]:
            for key, p in keys.items():
                p.data = first[key].clone()
            loss = gradients() + sum(0.5 * ours.reg * (w * w).sum() for w in weights)
            grads = {key: p.grad + ours.reg * p if key[0] == "W" else p.grad for key, p in keys.items()}
            return [loss, *(g.T if g.ndim == 2 else g for _, g in sorted(grads.items()))]

        return {STEP: step, "check": check}

    def _modules(self, layers: Sequence[Layer], shape: Sequence[int]) -> list[Any]:
        """Return the modules of layers that run one after another."""
        nn, modules = self.torch.nn, []
        makers: dict[str, Callable[[Any], list[Any]]] = {
            "Affine": lambda a: [nn.Flatten(), nn.Linear(prod(shape), a.units, a.bias)],
            "AvgPool": lambda a: [self._module(lambda x: x[:, :, :: a.stride, :: a.stride])],  # of one pixel
            "BatchNorm": lambda a: [nn.BatchNorm2d(shape[0])],
            "Conv": lambda a: [
                nn.Conv2d(
                    shape[0],
                    a.filters,
                    a.kernel_size,
                    a.stride,
                    [before for before, _ in a.window.padding],
                    bias=a.bias,
                )
            ],
            "GlobalAvgPool": lambda a: [nn.AdaptiveAvgPool2d(1), nn.Flatten()],
            "GlobalMaxPool": lambda a: [nn.AdaptiveMaxPool2d(1), nn.Flatten()],
            "MaxPool": lambda a: [nn.MaxPool2d(a.kernel_size, a.stride)],
            "PadChannels": lambda a: [nn.ZeroPad3d((0, 0, 0, 0, 0, a.channels - shape[0]))],
            "Relu": lambda a: [nn.ReLU()],
            "Residual": lambda a: [self._residual(*(self._modules(branch, shape) for branch in (a.body, a.shortcut)))],
        }
        for layer in layers:
            modules += makers[type(layer).__name__](layer)
            shape = layer.output_shape(tuple(shape))
        return modules

    def _residual(self, body: list[Any], shortcut: list[Any]) -> Any:
        """Return a module that adds the outputs of two branches."""
        branches = [self.torch.nn.Sequential(*modules) for modules in (body, shortcut)]
        return self._module(lambda x: branches[0](x) + branches[1](x), *branches)

    def _module(self, function: Callable[[Any], Any], *parts: Any) -> Any:
        """Return a module that computes a function, in which it uses other modules."""
        module = self.torch.nn.ModuleList(parts)
        module.forward = function
        return module


class TorchGraphs(Torch):
    """PyTorch with the whole step in a CUDA graph."""

    def captured_step(self, a: dict[str, Any], net: str, precision: str) -> Passes:
        cuda, step = self.torch.cuda, self.step(a, net, precision, capturable=True)[STEP]
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):  # as PyTorch's documentation warms up
            for _ in range(3):
                step()
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            step()
        return {STEP: graph.replay, "check": list}


def fail(reason: str) -> None:
    """Raise an error, since a row measures captured steps."""
    raise RuntimeError(reason)


def make_net(name: str, backend: Any) -> Any:
    """Return a net: the assignment's three layers, six 3x3 convolutions with batch norm, or a residual net."""
    makers: dict[str, Callable[..., Any]] = {
        "three-layer": lambda **options: ThreeLayerConvNet(hidden_dim=500, weight_scale=1e-2, **options),
        "six-conv": lambda **options: ConvNet([32, 32, "pool", 64, 64, "pool", 128, 128], **options),
        "resnet20": ResNet,
        "resnet9": ResNet9,
    }
    return makers[name](reg=1e-3, rng=0, backend=backend)
