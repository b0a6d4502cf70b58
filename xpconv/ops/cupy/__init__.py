"""Operations on CuPy arrays: the kernels of kernels.cu, and products of two matrices.

Nothing here waits for the device, and every sum is added in a fixed order, so runs repeat bit by bit. Kernels take
contiguous arrays; others are copied first.
"""
