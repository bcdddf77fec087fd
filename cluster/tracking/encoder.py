"""The code of a registered encoder, as MLflow stores it beside the weights: nothing is pickled.

MLflow runs this file when the model is loaded (models from code), in an environment that has jbot-studies.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel, PythonModelContext


class JetEncoder(PythonModel):
    """Jets in, [CLS] embedding out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights: record.json and student.safetensors lie in the artifact `encoder`."""
        import jbot

        self.encoder = jbot.load(context.artifacts["encoder"])

    def predict(self, context: PythonModelContext, model_input: np.ndarray, params: Any = None) -> np.ndarray:
        """The embedding, float32 (jet, dim), of (jet, particle, 4): eta_rel, phi_rel, pt_rel, valid."""
        return self.encoder.embed(model_input)


mlflow.models.set_model(JetEncoder())
