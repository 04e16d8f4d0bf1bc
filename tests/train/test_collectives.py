"""What a program sends is read off its text: kinds, bytes, how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tljax import mesh
from tljax.train import collectives
from tljax.train.collectives import Moved

LINES = {  # as compilers for CPUs, GPUs and TPUs print them
    "  %a = f32[] all-reduce(%x), channel_id=1, to_apply=%add": ("all-reduce", 4),
    "  %a = (f32[8,64]{1,0}, /*index=1*/bf16[3]{0}) all-reduce(%x, %y), to_apply=%add": ("all-reduce", 2054),
    "  %a = f32[16]{0:T(128)S(1)} all-reduce-start(%x), to_apply=%add": ("all-reduce", 64),
    "  %a = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}": ("all-gather", 128),
    "  %a = bf16[2,8]{1,0} all-gather(%x), dimensions={0}": ("all-gather", 32),
    "  %a = f32[4]{0} reduce-scatter(f32[32]{0} %x), dimensions={0}, to_apply=%add": ("reduce-scatter", 128),
    "  %a = s32[8]{0} collective-permute(%x), source_target_pairs={{0,1}}": ("collective-permute", 32),
}


@pytest.mark.parametrize("line", LINES)
def test_a_line(line):
    kind, size = LINES[line]
    text = f"HloModule m\n\nENTRY %main (x: f32[4]) -> f32[4] {{\n{line}\n}}\n"
    assert collectives.of(text) == {kind: Moved(1, size, (size,))}


@pytest.mark.parametrize("line", [
    "  %d = f32[16]{0} all-reduce-done(%a)", "  ROOT %f = f32[4]{0} fusion(%all-reduce.1), kind=kLoop, calls=%g",
    '  %m = f32[4]{0} add(%all-gather, %x), metadata={op_name="all-reduce(x)"}',
])  # fmt: skip
def test_what_is_none(line):
    assert collectives.of(f"ENTRY %main (x: f32[4]) -> f32[4] {{\n{line}\n}}\n") == {}


def test_a_loop_counts_as_often_as_it_runs():
    layout = mesh.over(jax.devices()[:4])

    @jax.jit
    def program(x):
        def one(total, row):
            return total + jax.lax.with_sharding_constraint(row.sum(0), layout.everywhere), None

        return jax.lax.scan(one, jnp.zeros(3), x)[0]

    x = jax.ShapeDtypeStruct((5, 8, 3), jnp.float32, sharding=layout._rows(1))
    found = collectives.of(program.lower(x).compile().as_text())
    assert found["all-reduce"].nbytes == 5 * 3 * 4
    assert found["all-reduce"].count == 5


def test_one_that_a_tpu_takes_in_pieces_counts_once():
    """Fusions that begin, go on with and end one all-gather between other work."""
    piece = (
        "%{0} (p: f32[4]) -> f32[8] {{\n  ROOT %g = f32[8]{{0}} all-gather(%p), channel_id={1}, dimensions={{0}}\n}}\n"
    )
    call = "  %c{0} = f32[8]{{0}} fusion(%x), kind=kCustom, calls=%{0}\n"
    names = ("begin", "go_on", "end", "another")
    pieces = "".join(piece.format(name, 8 if name == "another" else 7) for name in names)
    entry = "ENTRY %main (x: f32[4]) -> f32[8] {\n" + "".join(call.format(name) for name in names) + "}\n"
    assert collectives.of(pieces + entry) == {"all-gather": Moved(2, 64, (32, 32))}


def test_joined():
    assert Moved(1, 4, (4,)).joined(Moved(2, 12, (8, 4))) == Moved(3, 16, (8, 4, 4))


def test_nothing_is_sent_on_one_device():
    assert collectives.of(jax.jit(lambda x: x.sum()).lower(np.zeros(4, np.float32)).compile().as_text()) == {}
