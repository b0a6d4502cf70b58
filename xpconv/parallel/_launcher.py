"""Detect whether a launcher such as ``mpiexec`` has started this process as one of several workers."""

import os

from xpconv.errors import BackendUnavailableError
from xpconv.parallel._communicator import Communicator
from xpconv.parallel._mpi import Mpi

__all__ = ["find_communicator"]

SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables with the number of workers, set by Open MPI, by MPICH and Intel MPI, by MVAPICH and by Slurm."""


def find_communicator() -> Communicator:
    """Return an MPI communicator if a launcher has started several workers, otherwise that of a single worker.

    Raises
    ------
    BackendUnavailableError
        If the launcher started several workers, but mpi4py cannot be imported or finds only one.

    Examples
    --------
    >>> find_communicator().size
    1
    """
    sizes = {name: int(os.environ[name]) for name in SIZES if os.environ.get(name, "").isdecimal()}
    several = [(name, size) for name, size in sizes.items() if size > 1]
    if not several:
        return Communicator()
    name, size = several[0]
    communicator = Mpi()
    if communicator.size == 1:
        library = communicator._mpi.Get_library_version().split("\n")[0].split(",")[0].rstrip("\0")
        raise BackendUnavailableError(
            f"the launcher started {size} workers ({name}), but mpi4py's library ({library}) finds only one: take "
            "the launcher of that library, or build mpi4py for the MPI of this launcher"
        )
    return communicator
