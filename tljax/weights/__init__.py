"""Weights: files -> named tensors -> parameters, and back to a folder that Hugging Face opens."""
