"""Operations on CuPy arrays: CUDA kernels and matrix products."""
