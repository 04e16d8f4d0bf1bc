"""Next-item recommendation: which video game a customer of Amazon rates next, out of all 23,715 (SASRec's task).

python launch.py --config=configs/recommendation.py --workdir=runs/recommendation

The set is github.com/kang205/SASRec's Video.txt (Apache-2.0): 287,107 events of 31,013 users, in order of time;
TLJAX_TESTDATA names the folder that holds sasrec_video/Video.txt.gz. Of each user the last item is the test, the one
before it chooses the model, the others are learned from; every item is ranked, not a sample of them. The loss is the
full softmax over all items (Klenitskiy & Vasilev 2023), not SASRec's with one item drawn for each.

NDCG@10 and HR@10 on the 30,983 test items that follow others, seed 0, float32 on CPU, 18 minutes on 2 cores:

  from random values (this file)                                    0.0445  0.0854
  the nearest neighbours of the user's items                        0.0387  0.0749
  the same, what the user has had already left out                  0.0454  0.0860
  the most popular items                                            0.0121  0.0210
"""

import os

from tljax.config import Config, DataConfig, EventsConfig, ModelConfig, OptimConfig, TrainConfig, TransferConfig

HERE = os.path.dirname(os.path.abspath(__file__))
TESTDATA = os.environ.get("TLJAX_TESTDATA") or os.path.join(HERE, "..", "..", "shared", "data")
FILE = os.path.join(os.path.abspath(TESTDATA), "sasrec_video", "Video.txt.gz")


def get_config() -> Config:
    return Config(
        task="events",
        objective="item",
        model=ModelConfig(ref=os.path.join(HERE, "models", "events"), dropout=0.4),
        data=DataConfig(
            train=f"{FILE}#:-2", validation=f"{FILE}#-2:-1", test=f"{FILE}#-1:", max_length=50, max_buckets=5
        ),
        events=EventsConfig(entity="user", columns="user|item", fields=(("item", "category"),), item="item", context=8),
        transfer=TransferConfig(strategy="scratch"),
        optim=OptimConfig(learning_rate=1.5e-3, schedule="cosine"),
        train=TrainConfig(batch_size=32, eval_batch_size=256, epochs=16, best_metric="ndcg_10"),
    )
