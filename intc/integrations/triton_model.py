"""The model of a Triton repository that ``intc export --triton`` writes: its Python backend runs this file.

The environment of the backend needs intc, numpy and TVM's runtime; nothing of the compiler is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from intc.errors import FeedError
from intc.integrations.requests import run_together
from intc.runtime import load


class TritonPythonModel:
    """One instance: what Triton's dynamic batching collected is run together."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the artifact that lies beside this file."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.session = load(folder / "model.intc", share=True)
        self.inputs = [p.name for p in self.session.get_inputs()]
        self.outputs = [p.name for p in self.session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for every request; a request that does not fit gets an error of its own."""
        feeds = [
            {name: np.asarray(pb.get_input_tensor_by_name(request, name).as_numpy()) for name in self.inputs}
            for request in requests
        ]
        return [self._response(answer) for answer in run_together(self.session, feeds)]

    def _response(self, answer: Any) -> Any:
        if isinstance(answer, FeedError):
            return pb.InferenceResponse([], pb.TritonError(str(answer), pb.TritonError.INVALID_ARG))
        return pb.InferenceResponse([pb.Tensor(n, a) for n, a in zip(self.outputs, answer, strict=True)])

    def finalize(self) -> None:
        """Let the artifact go."""
        del self.session
