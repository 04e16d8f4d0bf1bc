"""Your own photos: a folder with one folder for each class, a list file, or a zip of either.

    python launch.py --config=configs/images.py --workdir=runs/mine \
        --config.data.train=photos/ --config.model.ref=google/vit-base-patch16-224-in21k

A list file is a table with the columns image and label (--config.data.image_column, --config.data.label_column), or
lines 'path, label'; paths are relative to it. The checkpoint is a Hugging Face id, a folder or a finished workdir.
"""

from tljax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, TransferConfig


def get_config() -> Config:
    return Config(
        task="image",
        model=ModelConfig(ref="google/vit-base-patch16-224-in21k"),
        data=DataConfig(train="", flip=True, crop_area=0.6),
        transfer=TransferConfig(strategy="full", head_factor=10.0, layer_decay=0.8),
        optim=OptimConfig(learning_rate=1e-4, schedule="cosine"),
        train=TrainConfig(batch_size=32, eval_batch_size=32, epochs=10, patience=3),
    )
