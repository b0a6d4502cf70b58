"""The assignment's fully connected nets; all names of `layer_utils` are here too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xpconv import nn
from xpconv.backend import Array, Backend, backend_of
from xpconv.cs231n import layer_utils
from xpconv.cs231n._adapt import draw_mask, keep_probability, p_means_drop
from xpconv.cs231n.classifiers._net import CourseNet
from xpconv.cs231n.layer_utils import *  # noqa: F403
from xpconv.errors import ArgumentError
from xpconv.layers import DropoutCache
from xpconv.layers import dropout_backward as apply_mask

__all__ = ["FullyConnectedNet", "TwoLayerNet"]
__all__ += layer_utils.__all__


class TwoLayerNet(CourseNet, nn.TwoLayerNet):
    """``affine - relu - affine - softmax`` in float64.

    Parameters
    ----------
    input_dim, hidden_dim, num_classes : int
    weight_scale : float
        Standard deviation of the initial weights, drawn from NumPy's global state.
    reg : float
        Weight of ``0.5 * sum(W * W)`` in the loss.
    backend : str or Backend
        NumPy by default, whatever ``XP_BACKEND`` says, since notebooks write NumPy arrays into ``params``.

    Examples
    --------
    >>> TwoLayerNet(input_dim=5, hidden_dim=50, num_classes=7).params["W2"].shape
    (50, 7)
    """

    def __init__(
        self,
        input_dim: int = 3 * 32 * 32,
        hidden_dim: int = 100,
        num_classes: int = 10,
        weight_scale: float = 1e-3,
        reg: float = 0.0,
        *,
        backend: str | Backend = "numpy",
    ) -> None:
        super().__init__(
            input_dim=input_dim,
            hidden_dim=hidden_dim,
            num_classes=num_classes,
            weight_scale=weight_scale,
            reg=reg,
            dtype="float64",
            backend=backend,
        )


class FullyConnectedNet(CourseNet, nn.FullyConnectedNet):
    """``{affine - [norm] - relu - [dropout]} x L - affine - softmax``, one hidden layer for each of `hidden_dims`.

    Parameters
    ----------
    hidden_dims : sequence of int
    input_dim, num_classes : int
    dropout : float, optional
        Probability that dropout keeps a value, or drops it if `xpconv.cs231n.edition` is 2017 or less or the call has
        `use_batchnorm`, which only those editions know; 0 means no dropout in all of them.
    normalization : {None, "batchnorm", "layernorm"}
        A bool is `use_batchnorm`, the fifth argument of the editions until 2017.
    reg, weight_scale : float
        As for `TwoLayerNet`.
    dtype : numpy.float32 or numpy.float64
    seed : int, optional
        Resets NumPy's global state before each mask is drawn, so that gradient checks see one function.
    dropout_keep_ratio : float, optional
        Probability that dropout keeps a value, as recent editions name it.
    use_batchnorm : bool, optional
        True is ``normalization="batchnorm"`` in the editions until 2017.
    backend : str or Backend
        As for `TwoLayerNet`.

    Raises
    ------
    ArgumentError
        If an option contradicts its older name.

    Examples
    --------
    >>> net = FullyConnectedNet(
    ...     [20, 30], input_dim=15, normalization="batchnorm", dropout_keep_ratio=0.5
    ... )
    >>> net.params["W2"].shape, net.params["gamma2"].shape
    ((20, 30), (30,))
    """

    _batch_norm = nn.BatchNorm(bias_correction=False)

    def __init__(
        self,
        hidden_dims: Sequence[int],
        input_dim: int = 3 * 32 * 32,
        num_classes: int = 10,
        dropout: float | None = None,
        normalization: str | bool | None = None,
        reg: float = 0.0,
        weight_scale: float = 1e-2,
        dtype: Any = "float32",
        seed: int | None = None,
        *,
        dropout_keep_ratio: float | None = None,
        use_batchnorm: bool | None = None,
        backend: str | Backend = "numpy",
    ) -> None:
        if isinstance(normalization, bool):
            use_batchnorm, normalization = normalization, None
        keep_prob = _keep_prob(dropout, dropout_keep_ratio, means_drop=use_batchnorm is not None or p_means_drop())
        if use_batchnorm:
            if normalization not in (None, "batchnorm"):
                raise ArgumentError(
                    f"use_batchnorm is True but normalization is {normalization!r}; "
                    "expected one of them: they are two names of one option"
                )
            normalization = "batchnorm"
        super().__init__(
            hidden_dims,
            input_dim=input_dim,
            num_classes=num_classes,
            keep_prob=keep_prob,
            normalization=normalization,
            weight_scale=weight_scale,
            reg=reg,
            dtype=dtype,
            seed=seed,
            backend=backend,
        )
        self.layers = tuple(
            Dropout(layer.keep_prob) if isinstance(layer, nn.Dropout) else layer for layer in self.layers
        )

    @property
    def num_layers(self) -> int:
        """Number of affine layers."""
        return sum(isinstance(layer, nn.Affine) for layer in self.layers)

    @property
    def use_dropout(self) -> bool:
        """Whether training drops values."""
        return bool(self.dropout_param)

    @property
    def dropout_param(self) -> dict[str, Any]:
        """A dict for `dropout_forward`, empty without dropout; changing it does not change the net."""
        for layer in self.layers:
            if isinstance(layer, nn.Dropout):
                p = 1 - layer.keep_prob if p_means_drop() else layer.keep_prob
                return {"mode": "train", "p": p} | ({} if self.seed is None else {"seed": self.seed})
        return {}

    @property
    def normalization(self) -> str | None:
        """One of None, "batchnorm" and "layernorm"."""
        names = {nn.BatchNorm: "batchnorm", nn.LayerNorm: "layernorm"}
        return next((names[type(layer)] for layer in self.layers if type(layer) in names), None)

    @property
    def use_batchnorm(self) -> bool:
        """Whether `normalization` is "batchnorm"."""
        return self.normalization == "batchnorm"

    @property
    def bn_params(self) -> list[dict[str, Any]]:
        """A dict for `batchnorm_forward` for each batch norm; changing it does not change the net."""
        params = []
        for layer, keys in zip(self.layers, self.layer_keys, strict=True):
            if isinstance(layer, nn.BatchNorm):
                running = {name: self.state[keys[name]] for name in ("running_mean", "running_var")}
                params.append({"mode": "train", **running})
            elif isinstance(layer, nn.LayerNorm):
                params.append({})
        return params

    def _layer_seed(self, position: int) -> Any:
        return self.seed


def _keep_prob(dropout: float | None, dropout_keep_ratio: float | None, *, means_drop: bool) -> float:
    """Return the probability of keeping a value that either option gives."""
    from_ratio = from_dropout = None
    if dropout_keep_ratio is not None:
        from_ratio = keep_probability("dropout_keep_ratio", dropout_keep_ratio, means_drop=False)
    if dropout is not None:
        from_dropout = keep_probability("dropout", dropout, means_drop=means_drop or dropout == 0)
    if from_ratio is not None and from_dropout not in (None, from_ratio):
        raise ArgumentError(
            f"dropout is {dropout} but dropout_keep_ratio is {dropout_keep_ratio}; "
            "expected one of them: they are two names of one option"
        )
    return next((value for value in (from_ratio, from_dropout) if value is not None), 1.0)


@dataclass(frozen=True)
class Dropout(nn.Dropout):
    """Dropout whose masks are drawn as the course draws them; the seed is the net's own."""

    def forward(self, x: Array, p: dict[str, Array], *, train: bool, seed: int | None) -> tuple[Array, Any]:
        """Return the output and the cache."""
        if not train:
            return super().forward(x, p, train=False, seed=0)
        cache = DropoutCache(
            backend_of(x).asarray(draw_mask(x.shape, self.keep_prob, seed)), self.keep_prob, tuple(x.shape)
        )
        return apply_mask(x, cache), cache
