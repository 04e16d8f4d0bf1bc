"""CLINC150 intents (15,000 questions, 150 classes, in scope only) with a Llama of 260,000 parameters for stories.

python launch.py --config=configs/clinc150_stories260k.py --workdir=runs/clinc150_stories260k

The set is github.com/clinc/oos-eval (CC BY 3.0), data_full.json; TLJAX_TESTDATA names the folder that holds
clinc150/clinc150_data_full.json.gz, or give --config.data.train, --config.data.validation and --config.data.test. The
checkpoint is a Hugging Face folder at TLJAX_STORIES260K, or --config.model.ref: karpathy/tinyllamas' stories260K (MIT)
with its SentencePiece model beside it, put together by

    mkdir -p runs/stories260k && cp $TLJAX_TESTDATA/stories260k_llama/hf/* runs/stories260k/ &&
    cp $TLJAX_TESTDATA/stories260k_llama/tok512.model runs/stories260k/tokenizer.model

Accuracy on the 4,500 test questions, seed 0, float32 on CPU:

  full, 8 epochs (this file)                                                       0.866
"""

import os

from tljax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, TransferConfig

HERE = os.path.dirname(os.path.abspath(__file__))
TESTDATA = os.environ.get("TLJAX_TESTDATA") or os.path.join(HERE, "..", "..", "shared", "data")
FILE = os.path.join(os.path.abspath(TESTDATA), "clinc150", "clinc150_data_full.json.gz")
STORIES = os.environ.get("TLJAX_STORIES260K") or os.path.join(HERE, "..", "runs", "stories260k")


def get_config() -> Config:
    return Config(
        task="text",
        model=ModelConfig(ref=os.path.abspath(STORIES)),
        data=DataConfig(
            train=f"{FILE}#train",
            validation=f"{FILE}#val",
            test=f"{FILE}#test",
            max_length=96,
            max_buckets=6,
        ),
        transfer=TransferConfig(strategy="full"),
        optim=OptimConfig(learning_rate=4e-3, schedule="cosine", weight_decay=0.01),
        train=TrainConfig(batch_size=64, epochs=8),
    )
