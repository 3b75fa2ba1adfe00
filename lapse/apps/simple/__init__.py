"""The smallest application: each primitive once, on a few keys."""
