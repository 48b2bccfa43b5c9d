"""A deterministic simulation of the whole platform: the real roles, one process, one seed a run."""
