"""The smallest application: every primitive once, on a few keys."""
