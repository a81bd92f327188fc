"""An image generator as it would be deployed to fal.

Its "model" is a colour palette and its "inference" is smooth noise in these colours, so that the
example runs in milliseconds and without a GPU. Everything around them is what a real app does.
"""

import json
import random
from typing import Literal

import fal
from fal.toolkit import Image, ImageSizeInput, download_model_weights, get_image_size
from PIL import Image as PILImage
from pydantic import BaseModel, Field

WEIGHTS_URL = "https://huggingface.co/example/palette/resolve/main/palette.json"
GRID = 8


class Input(BaseModel):
    prompt: str = Field(min_length=1, max_length=500)
    seed: int | None = Field(None, ge=0, description="The same seed gives the same image.")
    image_size: ImageSizeInput = "square"
    format: Literal["png", "jpeg", "webp"] = "png"


class Output(BaseModel):
    image: Image
    seed: int


class ImageGenerator(fal.App):
    machine_type = "GPU-A100"

    def setup(self) -> None:
        weights = download_model_weights(WEIGHTS_URL)
        self.palette: list[list[int]] = json.loads(weights.read_text())

    @fal.endpoint("/")
    def generate(self, input: Input) -> Output:
        seed = random.randrange(2**32) if input.seed is None else input.seed
        size = get_image_size(input.image_size)
        picture = self._paint(input.prompt, seed, size.width, size.height)
        return Output(image=Image.from_pil(picture, format=input.format), seed=seed)

    def _paint(self, prompt: str, seed: int, width: int, height: int) -> PILImage.Image:
        dice = random.Random(f"{seed} {prompt}")
        colours = [bytes(dice.choice(self.palette)) for _ in range(GRID * GRID)]
        noise = PILImage.frombytes("RGB", (GRID, GRID), b"".join(colours))
        return noise.resize((width, height), PILImage.Resampling.BICUBIC)
