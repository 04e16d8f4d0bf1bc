"""Adapters in PEFT's format: what we write PEFT opens with the same logits, and the other way round."""

import itertools
import json
import math
import warnings

import checkpoints
import jax
import numpy as np
import pytest
import random_configs
from theirs import TOLERANCE, answers

from tljax import models, trees
from tljax.errors import ConfigError, WeightsError, WriteError
from tljax.transfer.adapters import Adapter, adapted, start
from tljax.weights import files, peft, peft_names
from tljax.weights.families import FAMILIES

KINDS = ("lora", "rslora", "dora", "pissa", "ia3")
SETS = ("bert", "vit", "gpt2", "resnet", "llama", "dinov2-swiglu", "swin")


@pytest.fixture(scope="session")
def peft_side(torch_side):
    """The peft package; the test is skipped without it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft", exc_type=ImportError)


def put(name, kind, **options):
    """(model, network with an adapter, its parameters with adapter and head moved)."""
    model = checkpoints.load(name)
    options = {"rank": 2, "alpha": 3.0, **options}
    net = adapted(model.backbone, Adapter(kind, **options), model.config["model_type"])
    flat = trees.flatten(start(net, model.params, jax.random.key(0)))
    for path in flat:
        if path in net.grafted or net.stage_of(path) == "head":
            noise = np.random.default_rng(list(path.encode())).normal(0, 0.1, flat[path].shape)
            flat[path] = flat[path] + noise.astype(np.float32)
    return model, net, flat


def theirs_of(torch_side, name):
    """The plain checkpoint in transformers, and the inputs as it takes them."""
    import transformers

    table = FAMILIES[checkpoints.CONFIGS[name]["model_type"]]
    opener = getattr(transformers, table.language if name in checkpoints.LANGUAGE else table.classifier)
    inputs, _ = checkpoints.given(name)
    turned = {key: x.transpose(0, 3, 1, 2) if key == "pixel_values" else x for key, x in inputs.items()}
    return opener.from_pretrained(checkpoints.DATA / name, attn_implementation="eager"), inputs, turned


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(SETS, KINDS), ("gpt2-lm", "lora"), ("llama-lm", "dora")])
def test_peft_opens_what_is_written(name, kind, tmp_path, torch_side, peft_side):
    model, net, flat = put(name, kind)
    original = trees.flatten(model.params)
    peft.write(tmp_path, net, flat, model.config, original=original if kind == "pissa" else None)
    theirs, inputs, turned = theirs_of(torch_side, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers' own; PEFT's of missing keys are errors
        opened = peft_side.PeftModel.from_pretrained(theirs, tmp_path)
    assert sum(p.numel() for n, p in opened.named_parameters() if "lora_" in n or "ia3_" in n) == (
        sum(math.prod(shape) for shape in net.grafted.values()) * (2 if kind == "pissa" else 1)
    )
    found, want = net.run(trees.unflatten(flat), inputs)["logits"], answers(torch_side, opened, turned)["logits"]
    real = inputs["attention_mask"] != 0 if name in checkpoints.LANGUAGE else slice(None)
    np.testing.assert_allclose(np.asarray(found)[real], want[real], **TOLERANCE)


MADE = {  # name -> (options of LoraConfig, or of IA3Config where there is feedforward_modules)
    "lora": {"r": 2, "lora_alpha": 5},
    "gaussian": {"r": 2, "init_lora_weights": "gaussian"},
    "rslora": {"r": 2, "lora_alpha": 5, "use_rslora": True},
    "dora": {"r": 2, "use_dora": True},
    "dora by the root": {"r": 2, "use_dora": True, "use_rslora": True},
    "pissa": {"r": 2, "init_lora_weights": "pissa"},
    "ia3": {"feedforward_modules": True},
}
TARGETS = {  # name -> (target modules, those of them whose inputs IA3 scales)
    "bert": (["query", "key", "output.dense"], ["output.dense"]),
    "vit": (["q_proj", "fc2"], ["fc2"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "resnet": (["layer.0.convolution", "shortcut.convolution"], ["layer.0.convolution"]),
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("name", TARGETS)
def test_what_peft_made_opens_here(name, made, tmp_path, torch_side, peft_side):
    if (name, made) == ("resnet", "pissa"):
        pytest.skip("PEFT has no PiSSA for convolutions")
    theirs, inputs, turned = theirs_of(torch_side, name)
    wanted, feedforward = TARGETS[name]
    head = ["score"] if name == "gpt2" else ["classifier"]
    options = {**MADE[made], "target_modules": wanted, "modules_to_save": head, "fan_in_fan_out": name == "gpt2"}
    maker = peft_side.LoraConfig
    if made == "ia3":
        maker, options["feedforward_modules"] = peft_side.IA3Config, feedforward
    torch_side.torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft_side.get_peft_model(theirs, maker(**options))
        with torch_side.torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch_side.torch.randn_like(parameter) * 0.1)
        wrapped.save_pretrained(tmp_path)
    model = checkpoints.load(name)
    found = peft.read(tmp_path, model.backbone, model.config["model_type"])
    net = adapted(model.backbone, found.adapter, model.config["model_type"])
    assert found.leaves.keys() == net.grafted.keys()
    assert found.head.keys() == {path for path in net.shapes() if net.stage_of(path) == "head"}
    flat = trees.flatten(start(net, model.params, jax.random.key(0))) | found.leaves | found.head
    want = answers(torch_side, wrapped, turned)["logits"]
    np.testing.assert_allclose(net.run(trees.unflatten(flat), inputs)["logits"], want, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", checkpoints.THEIRS)
def test_every_name_is_a_module_of_transformers(family, torch_side):
    import transformers

    config = random_configs.draw(family, 7)
    fields = {name: value for name, value in config.items() if name not in ("model_type", "id2label")}
    said = transformers.AutoConfig.for_model(
        family, num_labels=3, **({"vision_config": fields} if family == "siglip" else fields)
    )
    with torch_side.torch.device("meta"):
        theirs = getattr(transformers, FAMILIES[family].classifier)(said)
    there = {name for name, _ in theirs.named_modules()}
    shapes = {path: leaf.shape for path, leaf in models.build(config, num_labels=3).shapes().items()}
    ours = {peft_names.module(FAMILIES[family], path, len(shape)) for path, shape in shapes.items()
            if path.endswith("/kernel") and not peft_names.HALVED.fullmatch(path)}  # fmt: skip
    assert not ours - there


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pissa"])
@pytest.mark.parametrize("name", SETS)
def test_there_and_back_is_bit_identical(name, kind, tmp_path):
    model, net, flat = put(name, kind)
    peft.write(tmp_path / "a", net, flat, model.config, base="here")
    found = peft.read(tmp_path / "a", model.backbone, model.config["model_type"])
    assert found.base == "here"
    assert (found.adapter.kind, found.adapter.scale if kind != "ia3" else 0) == (
        kind, net.adapter.scale if kind != "ia3" else 0
    )  # fmt: skip
    again = adapted(model.backbone, found.adapter, model.config["model_type"])
    assert set(again.sites) == set(net.sites)
    want = {path: leaf for path, leaf in flat.items() if path in net.grafted or net.stage_of(path) == "head"}
    assert trees.digests(found.leaves | found.head) == trees.digests(want)


def test_pissa_becomes_a_lora_of_twice_the_rank_on_the_original(tmp_path):
    model, net, flat = put("bert", "pissa")
    peft.write(tmp_path, net, flat, model.config, original=trees.flatten(model.params))
    found = peft.read(tmp_path, model.backbone, "bert")
    assert (found.adapter.kind, found.adapter.rank, found.adapter.scale) == ("lora", 4, net.adapter.scale)
    again = adapted(model.backbone, found.adapter, "bert")
    inputs, _ = checkpoints.given("bert")
    params = trees.unflatten(trees.flatten(model.params) | found.leaves | found.head)
    want = net.run(trees.unflatten(flat), inputs)["logits"]
    np.testing.assert_allclose(again.run(params, inputs)["logits"], want, rtol=1e-5, atol=1e-6)


def field(**changes):
    def change(folder):
        place = folder / peft.CONFIG
        place.write_text(json.dumps(json.loads(place.read_text()) | changes))

    return change


def tensor(change):
    def apply(folder):
        place = folder / peft.TENSORS
        from safetensors.numpy import load_file

        tensors = load_file(place)
        change(tensors)
        files.write_safetensors(place, tensors)

    return apply


A = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
DAMAGE = [  # (what, how, words)
    ("another method", field(peft_type="LOHA"), "peft_type: 'LOHA'"),
    ("ranks of their own", field(rank_pattern={"query": 4}), "rank_pattern"),
    ("biases", field(bias="all"), "bias: 'all'"),
    ("another start", field(init_lora_weights="olora"), "'olora', which changes the base"),
    ("a method within it", field(use_qalora=True), "use_qalora"),
    ("rank nothing", field(r=None), "r: None"),
    ("rank true", field(r=True), "r: True"),
    ("another rank", field(r=3), r"lora_a: shape \(16, 2\), expected \(16, 3\)"),
    ("DoRA without magnitudes", field(use_dora=True), "lora_magnitude: missing"),
    ("a factor missing", tensor(lambda t: t.pop(A)), "query/lora_a: missing"),
    ("a name of another network", tensor(lambda t: t.update({A.replace("query", "q"): t.pop(A)})), "unexpected"),
    ("another width", tensor(lambda t: t.update({A: t[A][:, :8]})), r"shape \(8, 2\), expected \(16, 2\)"),
    ("not finite", tensor(lambda t: t.update({A: t[A] * np.nan})), "query/lora_a: values that are NaN"),
    ("half a head", tensor(lambda t: t.pop("base_model.model.classifier.bias")), "classifier/bias: missing"),
    ("only the head", tensor(lambda t: [t.pop(n) for n in list(t) if "lora" in n]), "no adapter in it"),
    ("a pickle", lambda f: (f / peft.TENSORS).rename(f / "adapter_model.bin"), "does not open pickle"),
    ("no config", lambda f: (f / peft.CONFIG).unlink(), peft.CONFIG),
]


@pytest.mark.parametrize(("how", "words"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_what_is_damaged_is_refused(how, words, tmp_path):
    model, net, flat = put("bert", "lora")
    peft.write(tmp_path, net, flat, model.config)
    how(tmp_path)
    with pytest.raises(WeightsError, match=words):
        peft.read(tmp_path, model.backbone, "bert")


REFUSED = [  # (what, kind, options, words)
    ("no form of PEFT's", "bottleneck", {}, "bottleneck, which PEFT has in no form"),
    ("mean pooling", "lora", {"pooling": "mean"}, "mean pooling"),
    ("PiSSA alone", "pissa", {}, "PiSSA without the weights"),
]


@pytest.mark.parametrize(("kind", "options", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_written_says_why(kind, options, words, tmp_path):
    model, net, flat = put("bert", kind)
    with pytest.raises(ConfigError, match=words):
        peft.write(tmp_path, net, flat, model.config, **options)
    assert not list(tmp_path.iterdir())


def test_a_kernel_that_is_two_modules_of_transformers(tmp_path):
    model, net, flat = put("dinov2-swiglu", "lora", targets="weights_in")
    with pytest.raises(ConfigError, match="weights_in/kernel, of which transformers makes two"):
        peft.write(tmp_path, net, flat, model.config)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    model, net, flat = put("bert", "lora")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(WriteError, match=r"thesis\.txt"):
        peft.write(tmp_path, net, flat, model.config)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "thesis.txt").unlink()
    peft.write(tmp_path, net, flat, model.config)
    peft.write(tmp_path, net, flat, model.config)  # over its own
