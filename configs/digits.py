"""Digits of one post office, read by a network that learned from another's: MNIST to USPS, without labels of USPS.

python launch.py --config=configs/digits.py --workdir=runs/digits_cdan

The other way: --config.data.train=runs/digits/usps.npz#x_train,y_train --config.data.per_class=0
--config.data.test=runs/digits/mnist.npz#x_test,y_test --config.adapt.target=runs/digits/mnist.npz#x_train
--config.train.epochs=10

The digits are put into two .npz files by

    python benchmarks/domain_adaptation.py --prepare

from TLJAX_TESTDATA's mnist_usps/ (MNIST's official training set and 3,000 test digits; USPS's 7,291 and 2,007). The
network is a small ResNet, configs/models/digits, from random values.

Accuracy on USPS's 2,007 test digits, mean of seeds 0, 1 and 2 (smallest to largest), float32 on CPU, 5 epochs:
CDAN 0.962 (0.959 to 0.966), source only (--config.adapt.target= --config.adapt.method=none) 0.943 (0.940 to 0.947). The
other way, on 3,000 of MNIST, 10 epochs: CDAN 0.932 (0.930 to 0.935), source only 0.452 (0.372 to 0.572). The README has
more methods.
"""

import os

from tljax.config import AdaptConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, TransferConfig

HERE = os.path.dirname(os.path.abspath(__file__))
DIGITS = os.environ.get("TLJAX_DIGITS") or os.path.abspath(os.path.join(HERE, "..", "runs", "digits"))


def get_config() -> Config:
    return Config(
        task="image",
        model=ModelConfig(ref=os.path.join(HERE, "models", "digits")),
        data=DataConfig(
            train=os.path.join(DIGITS, "mnist.npz#x_train,y_train"),
            test=os.path.join(DIGITS, "usps.npz#x_test,y_test"),
            per_class=1000,
            validation_fraction=0.0,
            crop_area=0.5,  # a digit of USPS fills its picture, one of MNIST half of it
        ),
        adapt=AdaptConfig(method="cdan", weight=0.3, target=os.path.join(DIGITS, "usps.npz#x_train")),
        transfer=TransferConfig(strategy="scratch"),
        optim=OptimConfig(learning_rate=1e-3, schedule="cosine"),
        train=TrainConfig(batch_size=64, eval_batch_size=256, epochs=5),
    )
