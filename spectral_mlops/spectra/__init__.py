"""Pure mathematics of spectra on torch tensors: no hooks, no networks, no files."""
