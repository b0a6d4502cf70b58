"""The settings of a training run: their names, choices, limits and defaults."""

import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from xpconv._validation import check_choice, check_count, check_flag, check_nonnegative
from xpconv.cli._nets import NETS, NORMS, parse_layers
from xpconv.data import DATASETS
from xpconv.data.images import RESIZES
from xpconv.data.sampling import SAMPLERS
from xpconv.errors import ArgumentError, ArgumentTypeError, printable
from xpconv.training._microbatches import NORM_SYNCS
from xpconv.training.optim import UPDATE_RULES, default_options

__all__ = [
    "CHOICES",
    "DEFAULTS",
    "LEARNING_RATES",
    "MAXIMUMS",
    "MINIMUMS",
    "REALS",
    "Settings",
    "decays_weights",
    "parse_class_weights",
    "settings_for",
]

CHOICES = {
    "model": tuple(NETS),
    "norm": tuple(NORMS),
    "schedule": ("step", "cosine", "one-cycle", "constant"),
    "optimizer": tuple(UPDATE_RULES),
    "dtype": ("float32", "float64"),
    "precision": ("full", "mixed"),
    "patience_on": ("accuracy", "loss"),
    "sampling": tuple(SAMPLERS),
    "on_nonfinite": ("stop", "skip"),
    "norm_sync": NORM_SYNCS,
    "resize": RESIZES,
}
"""The words that a setting may be."""

MINIMUMS = {
    "width": 1,
    "dropout": 0,
    "epochs": 1,
    "batch_size": 1,
    "microbatches": 1,
    "learning_rate": 0,
    "lr_decay": 0,
    "decay_every": 1,
    "warmup": 0,
    "reg": 0,
    "momentum": 0,
    "weight_decay": 0,
    "clip_norm": 0,
    "ema": 0,
    "lookahead": 1,
    "label_smoothing": 0,
    "seed": 0,
    "num_train": 1,
    "image_size": 1,
    "patience": 1,
    "checkpoint_every": 1,
}
"""The least value of each setting that is a number."""

MAXIMUMS = {"dropout": 0.99, "label_smoothing": 1, "momentum": 1, "ema": 1, "image_size": 8192}
"""The greatest value of each setting that has one; an image of 8192x8192 pixels takes 0.8 GB in float32."""

MOST = 2**31 - 1
"""The greatest value of each other setting that is an integer, except the seed."""

REALS = (
    *("learning_rate", "lr_decay", "warmup", "reg", "momentum", "weight_decay", "clip_norm", "ema"),
    *("label_smoothing", "dropout"),
)
"""The settings that are real numbers; the others in MINIMUMS are integers."""

OPTIONAL = (
    *("layers", "norm", "width", "dropout", "init", "freeze", "class_weights"),
    *("num_train", "image_size", "patience", "checkpoint_every"),
    *("momentum", "weight_decay", "clip_norm", "ema", "lookahead"),
)
"""The settings that may be None."""

_SMALL_PICTURES = {
    "model": "convnet",
    "optimizer": "muon",
    "reg": 0.0,
    "patience_on": "accuracy",
    "label_smoothing": 0.0,
    "resize": "crop",
    "schedule": "one-cycle",
    "sampling": "epoch",
}
"""The settings that CIFAR-10 and folders have in common; docs/howto/cifar10.md has the accuracies."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {
        "model": "three-layer",
        "optimizer": "adamw",
        "epochs": 26,
        "batch_size": 50,
        "reg": 1e-3,
        "patience_on": "loss",
        "label_smoothing": 0.1,
        "augment": "affine",
        "resize": "strokes",
        "schedule": "one-cycle",
        "lr_decay": 0.9,
        "sampling": "epoch",
    },
    "cifar10": {**_SMALL_PICTURES, "epochs": 3, "batch_size": 128, "augment": "reflect2-flip", "lr_decay": 0.8},
    "a folder": {**_SMALL_PICTURES, "epochs": 20, "batch_size": 50, "augment": "none", "lr_decay": 0.9},
}
"""For each data set the settings that train well on it; a folder of few images gets those of `settings_for`."""

LEARNING_RATES = {
    "sgd": 1e-2,
    "sgd_momentum": 1e-2,
    "sgd_nesterov": 1e-2,
    "rmsprop": 1e-3,
    "adam": 1e-3,
    "adamw": 2e-3,
    "lion": 1e-4,
    "muon": 2e-2,
}
"""The default learning rate of each optimizer."""

MIN_ITERATIONS = 300
"""The least iterations of a training on a folder if no option says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What determines a run: the same settings give the same model, however often the run is stopped and resumed.

    Parameters
    ----------
    data : {"digits", "cifar10"} or str
        Any other string is the path of a folder of images.
    model : {"three-layer", "fc", "convnet", "resnet9", "resnet20", "resnet32", "resnet44", "resnet56"}
    layers : str, optional
        Stages of a convnet: numbers of filters and "pool", as in "32,32,pool,64".
    norm : {"batch", "group", "none"}, optional
        Norm after each convolution.
    width : int, optional
        Filters of the first convolution of a residual net.
    dropout : float, optional
        Probability that dropout before the last layer (in fc, after each hidden layer) drops a value.
    init : str, optional
        A model file to start from; it takes the place of `model` and its options.
    freeze : str, optional
        Pattern of the names of layers in `init` that are not trained, as for `Sequential.freeze`.
    epochs, batch_size, learning_rate, lr_decay, reg
        As for `Solver` and `Sequential`; DEFAULTS has good values for each data set.
    microbatches, norm_sync
        As for `Solver`.
    optimizer : {"sgd", "sgd_momentum", "sgd_nesterov", "rmsprop", "adam", "adamw", "lion", "muon"}
    momentum, weight_decay : float, optional
        Options of the optimizer. Norms and biases are not decayed.
    clip_norm, ema, lookahead
        As for `Solver`.
    label_smoothing : float
        As for `softmax_loss`.
    class_weights : str, optional
        "balanced", or a weight for each class, as in "1,2.5,1".
    dtype : {"float32", "float64"}
    precision : {"full", "mixed"}
        As for `Sequential`.
    backend : str
    seed : int
    num_train : int, optional
        Train on the first `num_train` samples only.
    augment : str
        Random changes of each minibatch, as for `xpconv.data.augment.parse_augmentation`.
    image_size : int, optional
        Height and width to which the images of a folder are resized.
    resize : {"crop", "squash", "strokes"}
        As for `xpconv.data.images.read_image`; the model records it for image files that it is to predict.
    strict : bool
        Whether a file in a folder that is not a readable image is an error.
    schedule : {"step", "cosine", "one-cycle", "constant"}
        How the learning rate changes; "step" multiplies it by `lr_decay` after each `decay_every` epochs.
    warmup : float
        Epochs, or a fraction of one, over which the learning rate rises from near 0.
    sampling, patience, patience_on, on_nonfinite
        As for `Solver`.
    checkpoint_every : int, optional
        Iterations between two checkpoints.

    Raises
    ------
    ArgumentError
        If a setting is not among its CHOICES or below its minimum, or one that may be None is set but has no effect.
    ArgumentTypeError
        If a setting has the wrong type.

    Examples
    --------
    >>> Settings(data="digits", **DEFAULTS["digits"], learning_rate=1e-3).model
    'three-layer'
    """

    data: str
    model: str
    layers: str | None = None
    norm: str | None = None
    width: int | None = None
    dropout: float | None = None
    init: str | None = None
    freeze: str | None = None
    epochs: int
    batch_size: int
    microbatches: int = 1
    norm_sync: str = "whole"
    learning_rate: float
    lr_decay: float
    optimizer: str
    reg: float
    momentum: float | None = None
    weight_decay: float | None = None
    clip_norm: float | None = None
    ema: float | None = None
    lookahead: int | None = None
    label_smoothing: float
    class_weights: str | None = None
    dtype: str = "float32"
    precision: str = "full"
    backend: str = "numpy"
    seed: int = 0
    num_train: int | None = None
    augment: str
    image_size: int | None = None
    resize: str
    strict: bool = False
    schedule: str
    decay_every: int = 1
    warmup: float = 0
    sampling: str
    patience: int | None = None
    patience_on: str
    on_nonfinite: str = "stop"
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None or name not in OPTIONAL:
                _check_setting(name, value)
        self.refuse_unused(name for name in OPTIONAL if getattr(self, name) is not None)

    def unused(self) -> dict[str, str]:
        """Return the settings that have no effect in this run, each with the reason and what to do."""
        return {name: reason.format(self) for name, (used, reason) in CONDITIONS.items() if not used(self)}

    def refuse_unused(self, names: Iterable[str]) -> None:
        """Raise ArgumentError if a setting among `names` has no effect in this run."""
        unused = self.unused()
        for name in names:
            if name in unused:
                raise ArgumentError(
                    f"{name} is {printable(getattr(self, name), 60)}, which has no effect {unused[name]}"
                )

    def command(self) -> str:
        """Return the command that repeats the run."""
        unused = self.unused()
        words = (
            f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}")
            for name, value in asdict(self).items()
            if value is not None and value is not False and name not in unused
        )
        return " ".join(["xpconv train", *words])


_IN_STEPS = (
    lambda settings: settings.schedule == "step",
    "if schedule is {0.schedule}: leave it out, or set schedule to step",
)
_ON_FOLDERS = (
    lambda settings: settings.data not in DATASETS,
    "on {0.data}: leave it out, or train on a folder of images",
)
_OWN_NET = (lambda settings: settings.init is None, "beside init, whose net is trained: leave out one of them")
_MOMENTUM_RULES = ", ".join(name for name in UPDATE_RULES if "momentum" in default_options(name))

CONDITIONS: dict[str, tuple[Callable[[Settings], bool], str]] = {
    **dict.fromkeys(("model", "layers", "norm", "width", "dropout"), _OWN_NET),
    "freeze": (lambda settings: settings.init is not None, "without a trained model: leave it out, or set init"),
    "norm_sync": (
        lambda settings: settings.microbatches > 1 and _may_have_batch_norm(settings),
        "without batch norm over 2 or more micro-batches: leave it out, or set microbatches for a net with batch norm",
    ),
    **dict.fromkeys(("lr_decay", "decay_every"), _IN_STEPS),
    "momentum": (
        lambda settings: "momentum" in default_options(settings.optimizer),
        f"with the optimizer {{0.optimizer}}: leave it out, or take one of {_MOMENTUM_RULES}",
    ),
    **dict.fromkeys(("image_size", "strict"), _ON_FOLDERS),
}
"""For each setting that has no effect in some runs: whether it has one, and otherwise the reason and what to do."""


def _may_have_batch_norm(settings: Settings) -> bool:
    return settings.init is not None or (settings.model != "three-layer" and settings.norm in (None, "batch"))


def _check_setting(name: str, value: Any) -> None:
    if name in CHOICES:
        check_choice(name, value, CHOICES[name])
    elif name in REALS:
        _check_number(name, value, MINIMUMS[name], MAXIMUMS.get(name, sys.float_info.max))
    elif name in MINIMUMS:
        check_count(name, value, MINIMUMS[name])
        most = MAXIMUMS.get(name, MOST)
        if value > most and name != "seed":
            raise ArgumentError(f"{name} is {printable(value, 40)}; expected an int, at most {most}")
    elif name == "strict":
        check_flag(name, value)
    elif name in PARSERS:
        PARSERS[name](value)
    elif not isinstance(value, str):
        raise ArgumentTypeError(f"{name} is {value!r}; expected a string")
    elif "\0" in value:
        raise ArgumentError(f"{name} is {value!r}; expected a string without null characters")


def _check_number(name: str, value: object, minimum: float, maximum: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value <= maximum:
        wanted = f"from {minimum} to {maximum}" if name in MAXIMUMS else f"{minimum} or more"
        raise ArgumentError(f"{name} is {printable(repr(value), 40)}; expected a finite number, {wanted}")


def decays_weights(optimizer: str, weight_decay: float | None) -> bool:
    """Return whether an optimizer decays the weights, as the setting or its own default says.

    Examples
    --------
    >>> (
    ...     decays_weights("adamw", None),
    ...     decays_weights("adam", None),
    ...     decays_weights("adam", 0.1),
    ... )
    (True, False, True)
    """
    return (default_options(optimizer)["weight_decay"] if weight_decay is None else weight_decay) > 0


def parse_class_weights(text: str) -> list[float] | None:
    """Return the weights in a text such as "1,2.5,1", or None for "balanced".

    Examples
    --------
    >>> parse_class_weights("1, 2.5")
    [1.0, 2.5]
    """
    if text == "balanced":
        return None
    try:
        return [check_nonnegative("class_weights", float(word)) for word in text.split(",")]
    except (AttributeError, ValueError):
        raise ArgumentError(
            f"class_weights is {printable(repr(text), 40)}; expected balanced, or a number for each class, 0 or more, "
            "as in 1,2.5,1"
        ) from None


PARSERS: dict[str, Callable[[str], object]] = {"layers": parse_layers, "class_weights": parse_class_weights}
"""The functions that read a setting's text, and raise an error if they cannot."""


def settings_for(data: str, num_images: int | None = None, **options: Any) -> Settings:
    """Return the settings of a run on a data set; defaults replace each option that is None.

    The defaults are those of DEFAULTS, LEARNING_RATES and Settings.

    If the number of a folder's training images is known, the default batch size is at most a tenth of it (but not below
    4), and the default epochs are enough for 300 iterations, over which the learning rate falls as far as it would over
    the usual number of epochs. With weight decay, the default of the L2 penalty is 0. The default batch size is
    rounded up to a multiple of the micro-batches.

    Parameters
    ----------
    data : str
        A data set's name, or the path of a folder.
    num_images : int, optional
        Number of training images.
    **options
        Settings, or None for the default.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        As for Settings, or if one of the options has no effect beside the others.

    Examples
    --------
    >>> settings = settings_for("digits", epochs=2, batch_size=None)
    >>> settings.epochs, settings.batch_size
    (2, 50)
    >>> settings = settings_for("my/pictures", num_images=84)
    >>> settings.epochs, settings.batch_size, settings.lr_decay
    (30, 8, 0.9322)
    >>> settings_for("digits", microbatches=4).batch_size
    52
    """
    defaults = DEFAULTS[data if data in DATASETS else "a folder"]
    given = {name: value for name, value in options.items() if value is not None}
    optimizer = given.get("optimizer", defaults["optimizer"])
    if optimizer in UPDATE_RULES:
        defaults = {**defaults, "learning_rate": LEARNING_RATES[optimizer]}
        if decays_weights(optimizer, given.get("weight_decay")):
            defaults["reg"] = 0.0
    if data not in DATASETS and num_images is not None:
        defaults = _for_few_images(defaults, given, num_images)
    parts = max(given.get("microbatches", 1), 1)
    defaults = {**defaults, "batch_size": -(-defaults["batch_size"] // parts) * parts}
    settings = Settings(data=data, **{**defaults, **given})
    settings.refuse_unused(given)
    return settings


def _for_few_images(defaults: dict[str, Any], given: dict[str, Any], num_images: int) -> dict[str, Any]:
    """Return a folder's defaults, changed if they make less than MIN_ITERATIONS of its images."""
    fitting = min(defaults["batch_size"], max(num_images // 10, min(num_images, 4)))
    iterations_per_epoch = max(num_images // given.get("batch_size", fitting), 1)
    epochs = max(defaults["epochs"], ceil(MIN_ITERATIONS / iterations_per_epoch))
    changed = {**defaults, "batch_size": fitting, "epochs": epochs}
    if "epochs" not in given:
        changed["lr_decay"] = round(defaults["lr_decay"] ** (defaults["epochs"] / epochs), 4)
    return changed
