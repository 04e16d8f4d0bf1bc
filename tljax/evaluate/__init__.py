"""Predictions -> scores -> pictures, a report that a browser opens, and a model card."""
