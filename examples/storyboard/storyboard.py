"""A storyboard artist: an app that has its pictures painted by another app.

Each scene goes to the painter through fal's queue, all of them at once. What the painter makes on
the way is nobody's business: it is hidden from everybody but the caller and gone after an hour.
Only the board itself is there for as long as the caller has asked for.
"""

from pathlib import Path

import fal
import fal_client
from fal.exceptions import FieldException
from fal.toolkit import Image, download_file
from fal.toolkit.utils.download_utils import DownloadError
from PIL import Image as PILImage
from pydantic import BaseModel, Field

PAINTER = "studio/painter"
SIZE = 64
#: Of the single pictures: for an hour, and for the caller alone.
PASSING = '{"expiration_duration_seconds": 3600, "initial_acl": {"default": "hide"}}'


class Scene(BaseModel):
    prompt: str


class Picture(BaseModel):
    image: Image


class Painter(fal.App):
    """Paints one picture."""

    machine_type = "GPU-A100"

    @fal.endpoint("/")
    def paint(self, input: Scene) -> Picture:
        if not input.prompt.strip():
            raise FieldException("prompt", "there is nothing to paint")
        colour = sum(input.prompt.encode()) % 256
        picture = PILImage.new("RGB", (SIZE, SIZE), (colour, 0, 255 - colour))
        return Picture(image=Image.from_pil(picture, format="png"))


class Script(BaseModel):
    scenes: list[str] = Field(min_length=1, max_length=12)
    #: A picture that is put into the corner, uploaded by the caller.
    logo_url: str | None = None


class Board(BaseModel):
    board: Image
    #: The scenes that could not be painted, by number.
    missing: list[int]


class Storyboard(fal.App):
    """Puts the scenes of a script side by side."""

    machine_type = "S"

    @fal.endpoint("/")
    def draw(self, input: Script) -> Board:
        logo = self._logo(input.logo_url)  # first of all: what follows costs money
        headers = {"X-Fal-Object-Lifecycle-Preference": PASSING}
        orders = [
            fal_client.submit(PAINTER, {"prompt": scene}, headers=headers) for scene in input.scenes
        ]
        board = PILImage.new("RGB", (SIZE * len(orders), SIZE), "white")
        missing = []
        for number, order in enumerate(orders):
            picture = self._picture(order)
            if picture is None:
                missing.append(number)
            else:
                board.paste(picture, (number * SIZE, 0))
        if logo is not None:
            board.paste(logo.resize((8, 8)), (0, 0))
        return Board(board=Image.from_pil(board, format="png"), missing=missing)

    def _picture(self, order: fal_client.SyncRequestHandle) -> PILImage.Image | None:
        try:
            url = order.get()["image"]["url"]
        except fal_client.FalClientHTTPError as error:
            print(f"not painted: {error}")
            return None
        # It is hidden; the caller's token, which each order has extended, opens it.
        assert self.current_request is not None
        token = self.current_request.headers["x-fal-cdn-token"]
        path = download_file(url, "/tmp", request_headers={"Authorization": f"Bearer {token}"})
        return PILImage.open(Path(path))

    def _logo(self, url: str | None) -> PILImage.Image | None:
        if url is None:
            return None
        try:
            return PILImage.open(Path(download_file(url, "/tmp")))
        except DownloadError as error:
            raise FieldException("logo_url", "the file could not be downloaded") from error
