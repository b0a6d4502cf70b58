"""The Stanford CS231n assignment's module names and signatures, as thin adapters over xpconv.

A notebook of the assignment runs with ``cs231n`` replaced by ``xpconv.cs231n``:
``from xpconv.cs231n.classifiers.cnn import *``, ``from xpconv.cs231n.solver import Solver`` and so on.
"""

edition: int | None = None
"""Year of the notebook. Until 2017, ``p`` of `dropout_forward` and ``dropout`` of `FullyConnectedNet` are the
probability of dropping a value, since 2018 that of keeping it; None is a recent year. Notebooks of 2018 exist of both
kinds: set 2017 if the text says that p is the probability of dropping."""
