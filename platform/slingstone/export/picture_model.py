"""An exported pipeline as MLflow serves it: prompts in, PNG files out. Needs mlflow, diffusers, torch; no slingstone.

MLflow keeps this very file with the model and runs it where the model is loaded.
"""

import io
from typing import Any

import mlflow
import pandas as pd
import torch
from diffusers import DiffusionPipeline


class PictureModel(mlflow.pyfunc.PythonModel):
    """Draws a picture a row in one step: columns `prompt` and, if it is there, `seed` (else 0)."""

    def load_context(self, context: Any) -> None:
        """Load the pipeline that lies beside the model's own files."""
        self.pipeline: Any = DiffusionPipeline.from_pretrained(context.artifacts["pipeline"])
        self.pipeline.set_progress_bar_config(disable=True)
        if torch.cuda.is_available():
            self.pipeline.to("cuda")

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Return the column `png`; a picture depends on its own prompt and seed only."""
        prompts = [str(prompt) for prompt in model_input["prompt"]]
        seeds = [0] * len(prompts)
        if "seed" in model_input:
            seeds = [0 if pd.isna(seed) else int(seed) for seed in model_input["seed"]]
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        pictures = self.pipeline(prompts, num_inference_steps=1, guidance_scale=0, generator=noise).images
        files = [io.BytesIO() for _ in pictures]
        for picture, file in zip(pictures, files, strict=True):
            picture.save(file, format="PNG")
        return pd.DataFrame({"png": [file.getvalue() for file in files]})


mlflow.models.set_model(PictureModel())
