"""What the project exists for: which parameters train, and whether the transfer paid."""
