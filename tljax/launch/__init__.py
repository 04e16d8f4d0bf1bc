"""Starts a run on one machine or many; imports no JAX, because it only starts, watches and ends processes."""
