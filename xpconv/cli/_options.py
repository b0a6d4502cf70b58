"""Options and arguments of the command line: their help, what they may be, and the words that the shell completes."""

import os
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from xpconv.backend import LIBRARIES, get_backend
from xpconv.cli._nets import CONVNET_LAYERS, parse_layers
from xpconv.cli._settings import CHOICES, DEFAULTS, LEARNING_RATES, MAXIMUMS, MINIMUMS, REALS, parse_class_weights
from xpconv.cli._tables import echo
from xpconv.data import DATASETS
from xpconv.data.augment import AUGMENTATIONS, parse_augmentation
from xpconv.data.folder import MAX_MEMORY
from xpconv.errors import ArgumentError

__all__ = [
    "BackendOption",
    "ModelArgument",
    "TtaOption",
    "augment_option",
    "choice_option",
    "class_weights_option",
    "data_option",
    "file_suffix",
    "layers_option",
    "max_memory_option",
    "number_option",
    "setting_option",
]


def choice_option(setting: str, text: str, default: str | bool = True) -> Any:
    """Return an option that takes one of the CHOICES of a setting; a `default` that is a string is for the help."""
    choices = CHOICES[setting]
    if setting in DEFAULTS["digits"]:
        default = _defaults(setting)

    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}.")
        return value

    return typer.Option(
        metavar="|".join(choices),
        callback=check,
        autocompletion=_completion(choices),
        show_default=default,
        help=text,
    )


ALIASES = {"learning_rate": ["--lr"]}
"""Other names of options, which the field uses."""


def setting_option(setting: str, text: str, default: str | bool = True) -> Any:
    """Return an option that takes a number in a setting's range, and whose help has the setting's defaults."""
    if setting in (*DEFAULTS["digits"], "learning_rate"):
        default = _defaults(setting)
    names = ["--" + setting.replace("_", "-"), *ALIASES.get(setting, [])]
    return number_option(text, MINIMUMS[setting], default, *names, real=setting in REALS, maximum=MAXIMUMS.get(setting))


def number_option(
    text: str,
    minimum: int,
    default: str | bool = True,
    *names: str,
    real: bool = False,
    maximum: float | None = None,
) -> Any:
    """Return an option that takes a number from `minimum` on; a `default` that is a string is for the help only."""
    metavar = "NUMBER" if real else "INTEGER"
    return typer.Option(*names, metavar=metavar, min=minimum, max=maximum, help=text, show_default=default)


def max_memory_option() -> Any:
    """Return the option of the memory that a folder's images may take."""
    return number_option(
        "MiB of memory for the images of a folder; more images are decoded while they are used, with the same results.",
        0,
        str(MAX_MEMORY),
    )


def _defaults(setting: str) -> str:
    """Return a setting's defaults for the help, by optimizer or data set if they differ."""
    by_data = {data: settings.get(setting) for data, settings in DEFAULTS.items()}
    keys_of: dict[Any, list[str]] = {}
    for key, value in (LEARNING_RATES if setting == "learning_rate" else by_data).items():
        keys_of.setdefault(value, []).append(key)
    if len(keys_of) == 1:
        return str(by_data["digits"])
    return "; ".join(f"{value} for {', '.join(keys)}" for value, keys in keys_of.items())


def _completion(words: Collection[str]) -> Callable[[str], list[str]]:
    """Return the function that completes a word for the shell, which offers files if none of `words` fits."""

    def fitting(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return fitting


def data_option(text: str) -> Any:
    """Return an option that takes a data set or a folder of images."""
    return typer.Option(
        metavar="|".join([*DATASETS, "DIR"]), callback=_check_data, autocompletion=_completion(DATASETS), help=text
    )


def _check_data(value: str | None) -> str | None:
    """Return the name of a data set, or the full path of a folder."""
    if value is None or value in DATASETS:
        return value
    if not os.path.isdir(value):
        raise typer.BadParameter(f"{value!r} is none of {', '.join(DATASETS)}, and there is no such folder.")
    return os.path.abspath(value)


def _check_tta(value: str) -> str:
    if value not in TEST_TIME_AUGMENTATIONS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(TEST_TIME_AUGMENTATIONS)}.")
    return value


TEST_TIME_AUGMENTATIONS = ("none", "flip", "flip-shift")
TtaOption = Annotated[
    str,
    typer.Option(
        metavar="|".join(TEST_TIME_AUGMENTATIONS),
        callback=_check_tta,
        autocompletion=_completion(TEST_TIME_AUGMENTATIONS),
        help="Test-time augmentation: average the scores of each image and its mirror (flip), and of both shifted "
        "by one pixel (flip-shift).",
    ),
]


def augment_option(text: str) -> Any:
    """Return an option that takes augmentations."""
    return typer.Option(
        metavar="|".join(AUGMENTATIONS),
        callback=_check_augment,
        autocompletion=_completion(AUGMENTATIONS),
        show_default=_defaults("augment"),
        help=text,
    )


def _check_augment(value: str | None) -> str | None:
    try:
        parse_augmentation(value or "none")
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from error
    return value


def class_weights_option(text: str) -> Any:
    """Return an option that takes the weights of the classes."""
    return typer.Option(
        metavar="balanced|NUMBERS",
        callback=_check_class_weights,
        autocompletion=_completion(["balanced"]),
        show_default="1 for each class",
        help=text,
    )


def layers_option(text: str) -> Any:
    """Return an option that takes the stages of a convnet."""
    return typer.Option(metavar="LIST", callback=_check_layers, show_default=CONVNET_LAYERS, help=text)


def _check_layers(value: str | None) -> str | None:
    try:
        parse_layers(CONVNET_LAYERS if value is None else value)
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from error
    return value


def _check_class_weights(value: str | None) -> str | None:
    try:
        parse_class_weights(value or "balanced")
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from error
    return value


def file_suffix(suffix: str) -> Callable[[Path], Path]:
    """Return the check that the name of a file to write ends in `suffix`."""

    def check(path: Path) -> Path:
        if path.suffix != suffix:
            raise typer.BadParameter(f"{str(path)!r}: expected a name that ends in {suffix}.")
        return path

    return check


def _check_backend(ctx: typer.Context, spec: str) -> str:
    """Return the backend's full name if it can run here."""
    if ctx.resilient_parsing:  # the shell completes a word: a GPU takes seconds to try
        return spec
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            backend = get_backend(spec)
        except ArgumentError as error:
            raise typer.BadParameter(str(error)) from error
    for note in notes:
        echo(f"xpconv: {note.message}", error=True)
    return str(backend)


BackendOption = Annotated[
    str,
    typer.Option(
        envvar="XP_BACKEND",
        callback=_check_backend,
        metavar="LIBRARY[:DEVICE]",
        autocompletion=_completion([*LIBRARIES, "auto"]),
        help="Array library to compute with: numpy, cupy, cupy:1, torch, torch:cuda, array_api_strict, or auto.",
    ),
]
ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model.safetensors that train wrote, or its folder.")
]
