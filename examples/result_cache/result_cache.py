"""An image generator that keeps its results: the same prompt is painted once.

The images lie on fal's CDN and live for a week; fal's key-value store remembers where they are.
What is easily forgotten about such a cache is written down here as code: an entry must die before
its image does, a caller's private image is nobody else's, and a store that is down costs time and
no answer.
"""

import hashlib
import json
import random

import fal
from fal.toolkit import Image, KVStore
from fal.toolkit.exceptions import KVStoreException
from PIL import Image as PILImage
from pydantic import BaseModel, Field

DAY = 24 * 60 * 60
#: How long an image lives, in seconds.
IMAGE_LIFETIME = 7 * DAY
#: How long its address is kept: whoever gets it has a day to fetch the image.
ENTRY_LIFETIME = IMAGE_LIFETIME - DAY


class Input(BaseModel):
    prompt: str = Field(min_length=1, max_length=500)


class Output(BaseModel):
    image: Image
    cached: bool


class ResultCache(fal.App):
    machine_type = "GPU-A100"

    def setup(self) -> None:
        self.entries = KVStore("results")
        self.painted = 0

    @fal.endpoint("/")
    def generate(self, input: Input) -> Output:
        # Who says how long or for whom an image is to be there gets one of his own.
        shared = self.current_request.lifecycle_preference is None
        if shared and (found := self._look_up(input.prompt)):
            return Output(image=found, cached=True)
        options = {"object_lifecycle_preference": {"expiration_duration_seconds": IMAGE_LIFETIME}}
        picture = self._paint(input.prompt)
        image = Image.from_pil(picture, format="png", save_kwargs=options if shared else {})
        if shared:
            self._keep(input.prompt, image)
        return Output(image=image, cached=False)

    def _look_up(self, prompt: str) -> Image | None:
        try:
            entry = self.entries.get(_key(prompt))
        except KVStoreException as error:
            print(f"no cache: {error}")
            return None
        return None if entry is None else Image(**json.loads(entry))

    def _keep(self, prompt: str, image: Image) -> None:
        entry = image.model_dump(include={"url", "content_type", "width", "height"})
        try:
            self.entries.set(_key(prompt), json.dumps(entry), ttl=ENTRY_LIFETIME)
        except KVStoreException as error:
            print(f"not kept: {error}")

    def _paint(self, prompt: str) -> PILImage.Image:
        self.painted += 1
        dice = random.Random(prompt)
        return PILImage.new("RGB", (64, 64), tuple(dice.randbytes(3)))


def _key(prompt: str) -> str:
    """A prompt as a key of the store, which takes no blanks, "?" and "#"."""
    return hashlib.sha256(prompt.encode()).hexdigest()
