"""The subjects of the reference: which names of a module belong together, and the tables that list them."""

import re
from fnmatch import fnmatchcase

SUBJECTS = {  # module: {subject: patterns of names in lower case}; a module that is not here is one subject
    "xpconv.nn": {
        "Nets": ["sequential", "*net", "*net9", "airbench"],
        "Affine and convolution layers": ["affine", "conv", "convtranspose"],
        "Activation layers": ["relu", "leakyrelu", "gelu", "silu"],
        "Pooling layers": ["*pool"],
        "Norm layers": ["*norm"],
        "Other layers": ["dropout", "residual", "padchannels", "scale"],
        "Preprocessing and initial values": ["preprocessing", "normal", "uniform", "dirac", "whitening_filters"],
        "Layers of your own": ["layer", "register_layer"],
    },
    "xpconv.layers": {
        "Affine layer": ["affine*"],
        "Convolution": ["conv_[fb]*", "convcache", "conv_transpose*", "convtransposecache"],
        "Activations": ["relu*", "leaky*", "gelu*", "silu*", "scale*"],
        "Pooling": ["*max_pool*", "*maxpool*", "*avg_pool*", "*avgpool*"],
        "Norms": ["batchnorm*", "layernorm*", "groupnorm*", "runningstats"],
        "Dropout and channels": ["dropout*", "pad*"],
        "Losses": ["*loss"],
    },
    "xpconv.data": {
        "Data sets": ["load_*", "dataset*"],
        "Preparing and reading data": ["*"],
    },
    "xpconv.data.augment": {
        "Augmentation by words": ["augmentations", "parse_augmentation", "mirroring_words", "minibatch*"],
        "Random changes of a minibatch": ["*"],
    },
    "xpconv.testing": {
        "Checks of a layer": ["check_layer", "layer*"],
        "Numerical gradients": ["check_gradient", "eval*", "rel_error"],
        "Comparison of backends": ["*equivalence*"],
    },
    "xpconv.training": {
        "Solver": ["solver", "lookahead"],
        "Some update rules": ["*"],
    },
    "xpconv.training.metrics": {
        "Accuracy and loss": ["accuracy", "evaluat*", "probabilities", "mirroraveraged"],
        "Results by class": ["confusion_matrix", "classification*"],
        "What the Solver uses": ["*"],
    },
    "xpconv.training.optim": {
        "Update rules": ["sgd*", "rmsprop", "adam*", "lion", "muon", "update_rules"],
        "Their options": ["*"],
    },
    "xpconv.backend": {
        "Selecting a backend": ["*backend*", "libraries", "diagnos*"],
        "Arrays and devices": ["array*", "to_host", "on_*", "copy_arrays", "library_of"],
        "TF32": ["*tf32*"],
    },
}
OTHER = "Others"
ENDS = "_forward", "_backward", "cache"  # the functions of a layer are shown together, in this order


def subjects_of(module, names):
    """Return the names of a module by subject; those that no pattern matches come last."""
    left, found = list(names), {}
    for subject, patterns in SUBJECTS.get(module, {}).items():
        chosen = [name for pattern in patterns for name in left if fnmatchcase(name.lower(), pattern)]
        found[subject] = sorted(dict.fromkeys(chosen), key=_layer_and_part) if module == "xpconv.layers" else chosen
        left = [name for name in left if name not in chosen]
    if left:
        found[OTHER if found else ""] = left
    return {subject: list(dict.fromkeys(chosen)) for subject, chosen in found.items() if chosen}


def _layer_and_part(name):
    """Return a key that sorts names by their layer, and then by forward, backward and cache."""
    part = next((number for number, end in enumerate(ENDS) if end in name.lower()), len(ENDS))
    layer = re.sub("_forward|_backward.*|cache|_", "", name.lower())
    return layer, part, name


def summary_tables(module, homes):
    """Return MyST with a table for each subject of a module; `homes` are the modules that describe its names."""
    tables = []
    for subject, names in subjects_of(module, homes).items():
        rows = "\n".join(f"   ~{homes[name]}.{name}" for name in names)
        title = f"**{subject}** ({{py:mod}}`{module}`)" if subject else f"{{py:mod}}`{module}`"
        tables.append(f"{title}\n\n```{{eval-rst}}\n.. autosummary::\n   :nosignatures:\n\n{rows}\n```\n")
    return "\n".join(tables)
