"""Options and fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from intc.module import Module
    from intc.report.inspection import Inspection

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)``: the text equals ``tests/golden/<name>.txt``."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{path.name} differs; see pytest --update-golden"

    return check


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small compiled artifact: see :mod:`tests.small`."""
    from tests.small import small_module

    path = tmp_path_factory.mktemp("artifact") / "small.intc"
    small_module().save(path)
    return path


@pytest.fixture(scope="session")
def encoder_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of :func:`tests.tiny_encoder.tiny_encoder`."""
    import onnx

    from tests.tiny_encoder import tiny_encoder

    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    onnx.save(tiny_encoder(), path)
    return path


@pytest.fixture(scope="session")
def encoder(encoder_onnx: Path) -> Module:
    """The encoder, compiled for this machine."""
    import intc
    from tests.tiny_encoder import tiny_feeds

    data = tiny_feeds(8, 24, seed=1)
    return intc.compile(encoder_onnx, calibration=data, rounding="nearest", calibrator="minmax")


@pytest.fixture(scope="session")
def inspection(encoder: Module) -> Inspection:
    """What can be seen of the encoder, errors on two samples included."""
    return encoder.inspect(samples=2)
