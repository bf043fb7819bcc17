"""Human preference pairs to a small, calibrated, quantised judge."""

from prefdistill.version import __version__

__all__ = ["__version__"]
