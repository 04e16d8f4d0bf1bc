"""One finished run on texts and one on images; the tests look at them and leave them as they are."""

import jax
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="session")
def text_run(tmp_path_factory) -> tiny.Run:
    root = tmp_path_factory.mktemp("texts")
    return tiny.run(root, root / "run", tiny.text_config(root))


@pytest.fixture(scope="session")
def image_run(tmp_path_factory) -> tiny.Run:
    root = tmp_path_factory.mktemp("images")
    return tiny.run(root, root / "run", tiny.image_config(root))


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Runs of the same shapes find what the first of them compiled: most of the time of a tiny run is that."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("jax")), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
