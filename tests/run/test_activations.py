"""Which activations a run keeps where it may choose: those that pay, phase by phase."""

import pytest
import tiny

from tljax import mesh
from tljax.run import activations, adapting
from tljax.run.together import Together
from tljax.transfer import phases


@pytest.mark.parametrize(
    ("mode", "starts"),
    # head, layer_1, layer_0, everything: below layer_0 are lookups alone, which are sooner made than read
    [("auto", (4, 2, 0, 0)), ("memory", (4, 2, 1, 0)), ("off", (0, 0, 0, 0))],
)
def test_gradual_unfreezing_starts_from_what_pays(tmp_path, mode, starts):
    config = tiny.text_config(tmp_path, transfer={"strategy": "gradual", "k": 1}, cache={"mode": mode})
    together = Together()
    model = adapting.load(config, together.tables(config).classes)
    examples = together.examples(config, model)
    planned = phases.of(model.backbone, config.transfer, config.train.epochs)
    kept = activations.plan(config, model.backbone, examples, planned, None, lambda: False, mesh.single())
    assert kept.starts == starts
    assert kept.ahead(0) == {start for start in starts[1:] if start}
