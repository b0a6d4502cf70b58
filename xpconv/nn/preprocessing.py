"""What a model does to its input first."""

from dataclasses import dataclass

from xpconv.backend import Array

__all__ = ["Preprocessing"]


@dataclass(frozen=True)
class Preprocessing:
    """What a model does to its input first: ``(x - mean) / std``, on its own device.

    Parameters
    ----------
    mean, std : array
        Broadcast against one sample: a whole mean image (C, H, W), one value a channel (C, 1, 1) or one value ().

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> net = TwoLayerNet(input_dim=64, rng=0, preprocessing=Preprocessing(mean=128.0, std=64.0))
    >>> float(net.preprocessing.mean)
    128.0
    """

    mean: Array
    std: Array
