"""``python -m spectral_mlops.cli``."""

from spectral_mlops.cli import main

main()
