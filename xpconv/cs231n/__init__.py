"""The module names and signatures of the Stanford CS231n assignments, as thin adapters over xpconv.

A notebook runs with ``cs231n`` replaced by ``xpconv.cs231n``: ``from xpconv.cs231n.classifiers.cnn import *``,
``from xpconv.cs231n.solver import Solver`` and so on. These notebooks run:

- of assignment 1: knn, softmax, two_layer_net and features of 2016 to 2026, svm of 2016 to 2024;
- FullyConnectedNets, BatchNormalization, Dropout and ConvolutionalNetworks of 2016 to 2026.

The notebooks on PyTorch, TensorFlow, recurrent nets, transformers, visualisation, style transfer, generative and
self-supervised learning do not: their modules are not here.
"""

__all__ = ["edition"]

edition: int | None = None
"""Year of the notebook; None stands for a recent year.

Until 2017, ``p`` of `dropout_forward` and ``dropout`` of `FullyConnectedNet` are the probability of dropping a value;
since 2018 they are that of keeping one. Some notebooks of 2018 have the older meaning: set 2017 if the text says that p
is the probability of dropping. Until 2016, the classifiers of assignment 1 add ``0.5 * reg * sum(W * W)`` to the loss;
since 2017 they add ``reg * sum(W * W)``.
"""
