"""What can go wrong, named by what the user can do about it.

Every message is one sentence or two: what was wrong, where (file, row, layer,
key), what was expected, and the way out. The command line prints it alone and
exits with 2.
"""


class SpectralError(Exception):
    """Base of every error that spectral_mlops raises on purpose."""


class InputError(SpectralError, ValueError):
    """A value, file or setting that came from the user is not usable."""


class UnknownNameError(SpectralError, LookupError):
    """A name that no registry entry, table column or setting answers to."""


class CaptureError(SpectralError, RuntimeError):
    """Hooks were used out of order, or labels and tensors do not belong together."""


class ProcessError(SpectralError, RuntimeError):
    """Another process of the same run failed, or has ended."""


class TrackingError(SpectralError, RuntimeError):
    """A tracking store cannot be used as it is."""


class StoreAway(TrackingError, ConnectionError):
    """A tracking store does not answer now, and may later."""
