"""amiss."""
