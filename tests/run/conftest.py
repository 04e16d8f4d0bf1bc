"""One finished run on texts and one on images; the tests look at them and leave them as they are."""

import pytest
import tiny


@pytest.fixture(scope="session")
def text_run(tmp_path_factory) -> tiny.Run:
    root = tmp_path_factory.mktemp("texts")
    return tiny.run(root, root / "run", tiny.text_config(root))


@pytest.fixture(scope="session")
def image_run(tmp_path_factory) -> tiny.Run:
    root = tmp_path_factory.mktemp("images")
    return tiny.run(root, root / "run", tiny.image_config(root))
