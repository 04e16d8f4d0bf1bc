"""Data: records -> examples -> batches.

`sources` reads files into records, `text` and `images` turn records into examples, `batching` plans which
examples stand together in a batch, `pipeline` makes the batches in threads.
"""
