"""Has the world changed? Samples are compared by `psi`, `ks` and `wasserstein`, streams heard by `adwin` and
`page_hinkley`.
"""
