"""The pure train step and the shell around it."""
