from __future__ import annotations

from typing import Any


def test_headers_need_neither_torch_nor_transformers(spawn: Any) -> None:
    script = "import sys, ultramem_deploy.checkpoint; print({'torch', 'transformers', 'onnx'} & set(sys.modules))"
    out, errors = spawn(script).communicate(timeout=60)
    assert out.strip() == "set()", errors
