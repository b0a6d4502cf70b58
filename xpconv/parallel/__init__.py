"""Communicators, which move arrays between workers that train one model together."""

from xpconv.parallel._communicator import Communicator
from xpconv.parallel._launcher import find_communicator
from xpconv.parallel._mpi import Mpi
from xpconv.parallel._nccl import Nccl
from xpconv.parallel._threads import Threads

__all__ = ["Communicator", "Mpi", "Nccl", "Threads", "find_communicator"]
