"""A fine-tuned model predicts in PyTorch transformers, with its tokenizer or image processor, what it predicts here."""

import io
import shutil
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from theirs import opened

from tljax.config import Config, DataConfig, DeviceConfig, ModelConfig, OptimConfig, TrainConfig
from tljax.data import sources

COUNT = 100  # real examples
TOLERANCE = 2e-5  # of a probability
QUICK = TrainConfig(batch_size=16, eval_batch_size=50, epochs=1)


def agree(side, run: tiny.Run, theirs, inputs) -> None:
    """Labels and probabilities of both sides, and that there was something to compare."""
    with side.torch.no_grad():
        found = theirs.eval()(**inputs).logits.softmax(-1).numpy()
    ours = run.done.probs
    assert f"{type(theirs).__name__}.from_pretrained" in (run.path / "model" / "README.md").read_text(encoding="utf-8")
    assert tuple(theirs.config.id2label.values()) == run.done.tables.classes
    assert found.shape == ours.shape == (COUNT, len(run.done.tables.classes))
    assert np.ptp(ours, axis=0).max() > 0.05, "every example has the same probabilities"
    np.testing.assert_allclose(ours, found, atol=TOLERANCE, rtol=0)
    np.testing.assert_array_equal(ours.argmax(1), found.argmax(1))


def questions(file: Path, split: str, intents: list[str], each: int) -> list[tuple[str, str]]:
    records = sources.read_records(f"{file}#{split}", DataConfig(), "text")
    by_intent: dict[str, list[str]] = defaultdict(list)
    for text, intent in zip(records.inputs, records.labels, strict=True):
        by_intent[intent].append(text)
    return [(text, intent) for intent in intents for text in by_intent[intent][:each]]


@pytest.mark.parametrize("kind", ["stories", "minilm"])
def test_a_hundred_questions(request, testdata, torch_side, tmp_path, kind):
    file = testdata("clinc150") / "clinc150_data_full.json.gz"
    intents = ["balance", "book_flight", "lost_luggage", "recipe", "weather"]
    ref = request.getfixturevalue("minilm") if kind == "minilm" else tmp_path / "stories"
    if kind == "stories":
        source = testdata("stories260k_llama")
        shutil.copytree(source / "hf", ref)
        shutil.copyfile(source / "tok512.model", ref / "tokenizer.model")
    train = tiny.table(tmp_path / "train.csv", questions(file, "train", intents, 32))
    unseen = questions(file, "test", intents, COUNT // len(intents))
    test = tiny.table(tmp_path / "test.csv", unseen)
    config = Config(
        task="text",
        model=ModelConfig(ref=str(ref), pooling="pooler" if kind == "minilm" else "auto"),
        data=DataConfig(train=str(train), test=str(test), validation_fraction=0.0, max_length=96, max_buckets=1),
        optim=OptimConfig(learning_rate=3e-3 if kind == "stories" else 2e-4, warmup_fraction=0.0),
        train=QUICK,
        device=DeviceConfig(count=1),
    )
    run = tiny.run(tmp_path, tmp_path / "run", config)
    model = run.path / "model"
    tokenizer = torch_side.AutoTokenizer.from_pretrained(model)
    inputs = tokenizer([text for text, _ in unseen], padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    agree(torch_side, run, opened(torch_side, "AutoModelForSequenceClassification", model), inputs)


def groceries(archive: zipfile.ZipFile, split: str, classes: list[str], each: int, folder: Path) -> list[Path]:
    """The first photos of each class, in folders of its name and in their order."""
    made = []
    for name in classes:
        members = sorted(m for m in archive.namelist() if m.startswith(f"{split}/") and f"/{name}/" in m)
        (folder / name).mkdir(parents=True)
        for member in members[:each]:
            made.append(folder / name / Path(member).name)
            made[-1].write_bytes(archive.read(member))
    return made


def test_a_hundred_photos(testdata, torch_side, tmp_path):
    classes = ["Banana", "Granny-Smith", "Lemon", "Orange"]
    with zipfile.ZipFile(testdata("grocery_store") / "grocery_short128.zip") as archive:
        groceries(archive, "train", classes, 12, tmp_path / "train")
        unseen = groceries(archive, "test", classes, COUNT // len(classes), tmp_path / "test")
    pictures = [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in unseen]
    assert len({picture.size for picture in pictures}) > 1  # so that they are resized differently
    config = Config(
        task="image",
        model=ModelConfig(ref=str(testdata("vit_tiny_tinyimagenet")), image_size=96),
        data=DataConfig(train=str(tmp_path / "train"), test=str(tmp_path / "test"), validation_fraction=0.0),
        optim=OptimConfig(learning_rate=2e-4, warmup_fraction=0.0),
        train=QUICK,
        device=DeviceConfig(count=1),
    )
    run = tiny.run(tmp_path, tmp_path / "run", config)
    model = run.path / "model"
    processor = torch_side.AutoImageProcessor.from_pretrained(model)
    agree(torch_side, run, opened(torch_side, "AutoModelForImageClassification", model),
          processor(pictures, return_tensors="pt"))  # fmt: skip
