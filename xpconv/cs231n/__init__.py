"""The Stanford CS231n assignment's module names and signatures, as thin adapters over xpconv.

A notebook of the assignment runs with ``cs231n`` replaced by ``xpconv.cs231n``:
``from xpconv.cs231n.classifiers.cnn import *``, ``from xpconv.cs231n.solver import Solver`` and so on.
"""
