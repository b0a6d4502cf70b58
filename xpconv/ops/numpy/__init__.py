"""Operations on NumPy arrays: in tiles that fit the cache, on a pool of threads."""
