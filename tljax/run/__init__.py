"""A whole run: from a config to a finished workdir, and from a workdir to predictions."""
