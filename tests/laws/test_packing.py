"""Law 4 where rows hold several texts: each gives what it gives alone, at every stage, in every family that packs."""

import dataclasses

import checkpoints
import numpy as np
import pytest

from tljax import mesh, trees
from tljax.data.text import Ragged, TextExamples
from tljax.transfer import filling
from tljax.transfer.cache import Cache, Pass

LENGTHS = (9, 1, 4, 5, 2, 2, 3, 8, 1, 6, 7, 2, 4)
PACKING = ["albert", "bert", "distilbert", "gpt2", "llama", "mistral", "modernbert", "qwen2", "qwen3",
           "roberta", "xlm-roberta"]  # fmt: skip


def texts(pad_id: int) -> TextExamples:
    """Texts in which the padding id stands for a word too: RoBERTa counts positions past it."""
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    ids = np.random.default_rng(0).integers(2, 30, offsets[-1]).astype(np.int32)
    ids[[12, 20, 21]] = pad_id
    return TextExamples(Ragged(ids, offsets), None, str, pad_id)


def test_every_family_of_texts_packs_or_is_known_not_to():
    found = {name for name in checkpoints.CLASSIFIERS if checkpoints.load(name).backbone.packs}
    assert found == set(PACKING)  # DeBERTa's embeddings read the mask themselves


@pytest.mark.parametrize("name", PACKING)
def test_what_several_texts_in_a_row_give(name):
    model = checkpoints.load(name)
    examples, flat = texts(model.config.get("pad_token_id") or 0), trees.flatten(model.params)
    stages = range(1, len(model.backbone.stages))
    alone = dataclasses.replace(model.backbone, packs=False)
    wanted, found = (Pass(network, flat, 3)(Cache(), examples, stages) for network in (alone, model.backbone))
    rows = np.arange(len(LENGTHS))
    for stage in stages:
        assert [leaf.name for leaf in found[stage].leaves] == [leaf.name for leaf in wanted[stage].leaves]
        for leaf, array in wanted[stage].gather(rows, 9).items():
            # values up to 3, rotary positions begin elsewhere in a row; another text's token is 1e-2 and more off
            np.testing.assert_allclose(
                found[stage].gather(rows, 9)[leaf], array, rtol=2e-5, atol=1e-5, err_msg=f"{stage}"
            )


def test_rows_do_hold_several():
    made = filling.chosen(checkpoints.load("bert").backbone, texts(0), [np.arange(len(LENGTHS))], 3, mesh.single())
    assert max(len(row) for plan in made.plans(0) for row in plan.rows) > 1
    one = mesh.single()
    assert isinstance(
        filling.chosen(checkpoints.load("deberta-v2").backbone, texts(0), [np.arange(3)], 3, one), filling.Padded
    )
