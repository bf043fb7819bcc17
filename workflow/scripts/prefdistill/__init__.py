"""Human preference pairs to a small, calibrated, quantised judge."""
