"""Grocery Store (81 fine classes of products, 2,936 photos to learn from) with a ViT-Tiny pretrained on ImageNet-21k.

python launch.py --config=configs/grocery_vit_tiny.py --workdir=runs/grocery

The photos are github.com/marcusklasson/GroceryStoreDataset (MIT), here with the short side resized to 128 pixels and
zipped; TLJAX_TESTDATA names the folder that holds grocery_store/grocery_short128.zip and vit_tiny_tinyimagenet/ (a
Hugging Face folder of a ViT-Ti/16), or give --config.data.train, --config.data.test and --config.model.ref.

Accuracy on the 2,485 test photos, mean of seeds 0, 1 and 2 (smallest to largest), float32 on CPU at 224 pixels:

  full, 3 epochs (this file)                                                       0.802 (0.798 to 0.805)
  --config.transfer.strategy=feature_extraction --config.transfer.head_factor=1
  --config.train.epochs=8 --config.optim.learning_rate=2e-3
  --config.optim.weight_decay=1                                                    0.603 (0.602 to 0.605)
  --config.transfer.strategy=scratch                                               0.192 (seed 0)

For comparison (measured elsewhere): logistic regression on the CLS features 0.593.
"""

import os

from tljax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, TransferConfig

TESTDATA = os.environ.get("TLJAX_TESTDATA") or os.path.join(os.path.dirname(__file__), "..", "..", "shared", "data")
ROOT = os.path.abspath(TESTDATA)
ARCHIVE = os.path.join(ROOT, "grocery_store", "grocery_short128.zip")


def get_config() -> Config:
    return Config(
        task="image",
        model=ModelConfig(ref=os.path.join(ROOT, "vit_tiny_tinyimagenet")),
        data=DataConfig(
            train=f"{ARCHIVE}#train.txt|{ARCHIVE}#val.txt",
            test=f"{ARCHIVE}#test.txt",
            validation_fraction=0.0,
            flip=True,
        ),
        transfer=TransferConfig(strategy="full", head_factor=10.0),
        optim=OptimConfig(learning_rate=2e-4, schedule="cosine", weight_decay=0.05),
        train=TrainConfig(batch_size=32, eval_batch_size=64, epochs=3),
    )
